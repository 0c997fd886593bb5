# SPDX-License-Identifier: Apache-2.0
"""The remedy: the smallest change of the mesh after which a connection is encrypted and allowed.

For what stands in the way first, the changes that may remove it are tried on a copy of the mesh,
likeliest first, and the real decisions say what comes of it; where that is something else that
stands in the way, the same again. Fewer changes are tried before more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide import change, waypoint
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.journey import Kind, Outcome, travel, upstreams
from ztunnel_py.decide.remedy_policy import of_denial
from ztunnel_py.decide.remedy_service import holders, of_endpoints, of_reference
from ztunnel_py.decide.verdict import Action
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.service import BalanceMode, IpFamilies, Service, Visibility
from ztunnel_py.state.workload import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.decide import upstream
    from ztunnel_py.decide.change import Change
    from ztunnel_py.decide.journey import Arrival, Journey
    from ztunnel_py.decide.names import Route
    from ztunnel_py.decide.remedy_service import Holder
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload

_MOST_CHANGES = 10
_MOST_TRIES = 300
"""Bounds the work for one question, whatever the mesh is like."""


def remedy(
    store: Store, settings: Settings, src: str, dst: str, journey: Journey
) -> tuple[Change, ...] | None:
    """The changes that help, none if none are needed; None if none were found.

    Cost: up to some hundred copies of the store.
    """
    if journey.outcome is Outcome.ENCRYPTED:
        return ()
    search = _Search(settings, src, dst)
    for most in range(1, _MOST_CHANGES + 1):
        found = search.find(store, journey, most)
        if found is not None or not search.is_deeper_worthwhile:
            return found
    return None


class _Search:
    """Looks for changes, as long as there are tries left."""

    def __init__(self, settings: Settings, src: str, dst: str) -> None:
        self._settings = settings
        self._src = src
        self._dst = dst
        self._tries = _MOST_TRIES
        self.is_deeper_worthwhile = False

    def find(self, store: Store, journey: Journey, most: int) -> tuple[Change, ...] | None:
        """At most `most` changes of `store` that help."""
        self.is_deeper_worthwhile = False
        return self._find(store, journey, most, ())

    def _find(
        self, store: Store, journey: Journey, most: int, done: tuple[Change, ...]
    ) -> tuple[Change, ...] | None:
        found = [one for one in candidates(store, journey) if not _is_undoing(one, done)]
        before = _sign(journey, found)
        onward = []
        for one in found:
            if self._tries == 0:
                return None
            self._tries -= 1
            twin = store.copy()
            twin.apply(one.updates)
            then = travel(twin, self._settings, self._src, self._dst)
            if then.outcome is Outcome.ENCRYPTED:
                return (one,)
            if _sign(then, candidates(twin, then)) != before:
                onward.append((one, twin, then))
        if most == 1:
            self.is_deeper_worthwhile = self.is_deeper_worthwhile or bool(onward)
            return None
        for one, twin, then in onward:
            rest = self._find(twin, then, most - 1, (*done, one))
            if rest is not None:
                return (one, *rest)
        return None


def _is_undoing(one: Change, done: tuple[Change, ...]) -> bool:
    """Whether it sets again what an earlier change has set, which would make that superfluous."""
    set_before = [edit.path for before in done for edit in before.edits if edit.op == "set"]
    return any(edit.op != "add" and edit.path in set_before for edit in one.edits)


def _sign(journey: Journey, found: list[Change]) -> tuple[object, ...]:
    """What tells that a change got the connection further, or that something else is to be done."""
    decisive = journey.decisive
    bad = sum(one.outcome is not Outcome.ENCRYPTED for one in journey.arrivals)
    who = decisive.workload.uid if decisive.workload is not None else None
    is_enrolled = journey.route.is_enrolled
    words = tuple(one.words for one in found)
    return is_enrolled, decisive.outcome, decisive.reason, who, decisive.address, bad, words


# --- candidates


def candidates(store: Store, journey: Journey) -> list[Change]:
    """Changes that may remove what stands in the way of `journey` first, likeliest first."""
    route = journey.route
    if not route.is_enrolled:
        if route.is_known:
            return [change.enrol(store, route.source)]
        return [change.join(route.source.network, route.src, _neighbour(store, journey))]
    verdict, arrival = journey.outbound, journey.decisive
    if verdict is not None and verdict.action is Action.DENY:
        return list(_of_refusal(store, route, verdict))
    if arrival.verdict is not None and arrival.verdict.action is Action.DENY:
        return list(_of_inbound(store, arrival))
    if arrival.outcome is Outcome.REFUSED:
        return list(_of_unexpected(store, journey))
    if arrival.workload is not None:
        return [change.enrol(store, arrival.workload)]
    return list(_of_nobody(store, route))


def _neighbour(store: Store, journey: Journey) -> Workload:
    """Whom a new workload resembles: the one that is called, else anybody."""
    called = journey.decisive.workload
    if called is not None:
        return called
    return next(store.workloads(), journey.route.source)


def _of_nobody(store: Store, route: Route) -> Iterator[Change]:
    """For an address to which a connection passes through, as nobody answers for it."""
    address = NetworkAddress(route.source.network, route.dst.ip)
    service = store.service_at(address, route.source.namespace)
    hidden = store.service_at(address)
    if service is not None:
        assert service.load_balancer is not None  # only one that passes through is left
        balancer = service.load_balancer._replace(mode=BalanceMode.STANDARD)
        words = f"let service {service.key} choose among its endpoints: mode Standard"
        path = ("loadBalancer", "mode")
        yield change.of_service(service, words, path, "Standard", load_balancer=balancer)
    elif hidden is not None:
        words = f"make service {hidden.key} visible to all namespaces: visibility Public"
        new = Visibility.PUBLIC
        yield change.of_service(hidden, words, ("visibility",), "Public", visibility=new)
    elif not any(route.dst.ip in workload.ips for workload in store.workloads()):
        yield change.join(address.network, route.dst.ip, route.source)


def _of_refusal(store: Store, route: Route, verdict: Verdict) -> Iterator[Change]:
    """For a connection that finds no way out of its own node."""
    source = route.source
    address = NetworkAddress(source.network, route.dst.ip)
    service = store.service_at(address, source.namespace)
    match verdict.reason:
        case Reason.NO_HEALTHY_UPSTREAM if service is not None:
            yield from of_endpoints(store, source, service, route.dst.port, Mode.STANDARD)
        case Reason.UNKNOWN_WAYPOINT:
            for holder in waypoint_holders(store, route):
                yield from of_reference(store, source, route.dst.ip, holder, Mode.WAYPOINT)
        case Reason.UNKNOWN_GATEWAY | Reason.NO_ROUTE:
            yield from _of_routes(store, route)
        case Reason.NO_SERVICE:
            for holder in waypoint_holders(store, route):
                yield holder.without()


def _of_routes(store: Store, route: Route) -> Iterator[Change]:
    """For upstreams, or waypoints, to which there is no way."""
    for found in _ways(store, route):
        workload = found.workload
        if workload.network != route.source.network:
            for holder in holders(store, workload, "network_gateway"):
                yield from of_reference(store, route.source, route.dst.ip, holder, Mode.STANDARD)
        elif workload.ips and found.service is not None:
            words = f"let service {found.service.key} use all address families: ipFamilies Dual"
            new = IpFamilies.DUAL
            yield change.of_service(found.service, words, ("ipFamilies",), "Dual", ip_families=new)


def _ways(store: Store, route: Route) -> Iterator[upstream.Upstream]:
    for holder in waypoint_holders(store, route):
        if holder.reference is not None:
            source, ip = route.source, route.dst.ip
            yield from holder.find(store, source, ip, Mode.WAYPOINT)
    yield from upstreams(store, route)


def waypoint_holders(store: Store, route: Route) -> list[Holder]:
    """Who sends the connection through a waypoint: the service, else the workload called."""
    address = NetworkAddress(route.source.network, route.dst.ip)
    found = store.at(address, route.source.namespace)
    if found is None:
        return []
    if isinstance(found, Service):
        in_use = [reference for reference, _ in waypoint.of_service(found)]
        return [one for one in holders(store, found, "waypoint") if one.reference in in_use]
    called = [one.workload for one in upstreams(store, route)] or [found]
    every = [holder for one in called for holder in holders(store, one, "waypoint")]
    return [holder for holder in every if holder.reference is not None]


def _of_unexpected(store: Store, journey: Journey) -> Iterator[Change]:
    """For tunnels inside tunnels, at whose ends is nobody that is accepted there."""
    route, arrival = journey.route, journey.decisive
    for workload, _, service, _ in _ways(store, route):
        is_meant = arrival.kind is Kind.GATEWAY or workload is arrival.workload
        if workload.network == route.source.network or service is None or not is_meant:
            continue
        accepted = (*service.subject_alt_names, str(workload.identity))
        words = f"name {workload.identity} in the subjectAltNames of service {service.key}"
        path = ("subjectAltNames",)
        yield change.of_service(service, words, path, list(accepted), subject_alt_names=accepted)


def _of_inbound(store: Store, arrival: Arrival) -> Iterator[Change]:
    """For a connection that the destination's node refuses."""
    workload, verdict = arrival.workload, arrival.verdict
    assert workload is not None
    assert verdict is not None
    match verdict.reason:
        case Reason.POLICY_DENIED:
            yield from of_denial(store, arrival)
        case Reason.IP_MISMATCH if arrival.kind is Kind.WAYPOINT:
            words = f"let waypoint {workload.namespace}/{workload.name} end tunnels itself"
            yield change.of_workload(
                store, workload, f"{words}: nativeTunnel", "nativeTunnel", True, native_tunnel=True
            )
        case Reason.UNKNOWN_HOST:
            for service in store.services():
                if service.hostname == verdict.detail:
                    words = f"make service {service.key} visible to all namespaces"
                    new = Visibility.PUBLIC
                    yield change.of_service(
                        service,
                        f"{words}: visibility Public",
                        ("visibility",),
                        "Public",
                        visibility=new,
                    )
        case Reason.NO_PORT:
            host, _, port = verdict.detail.rpartition(":")
            for service in store.services_of(workload) or list(store.services()):
                if service.hostname == host and workload.protocol is Protocol.HBONE:
                    own = store.memberships(workload.uid).get(service.key, {})
                    ports = {**own, int(port): int(port)}
                    words = f"give {workload.namespace}/{workload.name} port {port} of {host}"
                    yield change.serve(store, workload, service.key, ports, words)
