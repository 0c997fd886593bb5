# SPDX-License-Identifier: Apache-2.0
"""The steps on the source's node: who connects, who answers for the address, how to go there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide import gateway, names, outbound, waypoint
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.journey import Kind, Outcome, of_node
from ztunnel_py.decide.remedy import waypoint_holders
from ztunnel_py.decide.standing import ports_of, standings
from ztunnel_py.decide.step import Finding, Mark, Step, finding
from ztunnel_py.decide.verdict import HopProtocol
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.service import Service
from ztunnel_py.state.workload import NetworkMode, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.decide.journey import Arrival, Journey
    from ztunnel_py.decide.names import Route
    from ztunnel_py.decide.remedy_service import Holder
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.decide.verdict import Hop
    from ztunnel_py.state.store import Store

_HOP_REASONS = (Reason.UNKNOWN_GATEWAY, Reason.NO_ROUTE, Reason.NO_SERVICE)


def steps(store: Store, settings: Settings, journey: Journey) -> Iterator[Step]:
    """From the source to the hop, as far as the connection comes."""
    route, verdict = journey.route, journey.outbound
    yield _source(route)
    if verdict is not None and outbound.is_self_call(of_node(settings, route.source), route.dst):
        yield Step("address", f"{route.dst} is the proxy itself", is_obstacle=True)
        return
    found = _answering(store, route)
    yield _address(store, journey, found)
    if found is None:
        yield from _hops(journey)
        return
    via = waypoint_holders(store, route) if verdict is not None else []
    if isinstance(found, Service) and not via:
        if found.is_passthrough:
            yield from _hops(journey)
            return
        has_one = bool(waypoint.of_service(found))
        yield Step("waypoint", "plain TCP passes it by" if has_one else "none")
        yield from _service(store, journey, found)
    elif via:
        yield _waypoint(store, journey, found)
        if verdict is not None and verdict.reason is Reason.UNKNOWN_WAYPOINT:
            return
    else:
        yield Step("waypoint", "none")
    yield from _hops(journey)


def _answering(store: Store, route: Route) -> Service | Workload | None:
    """What the outbound decision goes by: a workload's own address, unless it is also a VIP."""
    address = NetworkAddress(route.source.network, route.dst.ip)
    found = store.at(address, route.source.namespace)
    service = store.service_at(address, route.source.namespace)
    if isinstance(found, Workload) and service is not None and not service.is_passthrough:
        return service
    return found


# --- who


def _source(route: Route) -> Step:
    source = route.source
    if not route.is_known:
        text = f"nobody knows {source.name}: what it sends is not encrypted and proves nobody"
        return Step("source", text, is_obstacle=True)
    name = names.shown(source)
    if not route.is_enrolled:
        text = f"{name} is not enrolled (protocol TCP): what it sends is not encrypted"
        return Step("source", text, is_obstacle=True)
    where = [f"node {source.node}"] if source.node else []
    where += [f"network {source.network}"] if source.network else []
    said = ", ".join(["HBONE", *where])
    return Step("source", f"{name} proves {source.identity} ({said})")


def _address(store: Store, journey: Journey, found: Service | Workload | None) -> Step:
    route = journey.route
    ip, namespace = route.dst.ip, route.source.namespace
    if isinstance(found, Workload):
        return Step("address", f"{ip} is workload {names.shown(found)} ({found.protocol.value})")
    if isinstance(found, Service):
        text = f"{ip} is {_part(found, journey)} of service {found.key}"
        is_dialled = found.is_passthrough and not waypoint.of_service(found)
        if is_dialled:
            text += ", which passes through: it is dialled as it is, with plain TCP"
        return Step("address", text, is_obstacle=is_dialled and journey.outbound is not None)
    said = []
    address = NetworkAddress(route.source.network, ip)
    hidden = store.service_at(address)
    if hidden is not None and not hidden.is_visible_to(namespace):
        text = f"service {hidden.key} has it, but only namespace {hidden.namespace} sees that"
        said.append(finding(False, text))
    for workload in store.workloads():
        if ip not in workload.ips:
            continue
        if workload.network != route.source.network:
            there = workload.network or "(default)"
            text = f"{names.shown(workload)} has it on network {there}: call it by a service"
            said.append(finding(False, text))
        elif workload.network_mode is NetworkMode.HOST_NETWORK:
            text = f"{names.shown(workload)} is on its node's network: call it by a service"
            said.append(finding(False, text))
    text = f"nobody answers for {ip}: the connection passes through, with plain TCP"
    return Step("address", text, journey.outbound is not None, tuple(said))


def _part(service: Service, journey: Journey) -> str:
    address = NetworkAddress(journey.route.source.network, journey.route.dst.ip)
    if address in service.vips:
        return "a VIP"
    ranges = [
        vip.cidr
        for vip in service.cidr_vips
        if vip.network == address.network and address.ip in vip.cidr
    ]
    widest = max(ranges, key=lambda cidr: cidr.prefixlen, default=None)
    return f"in the range {widest}" if widest is not None else "an address"


# --- waypoints


def _waypoint(store: Store, journey: Journey, found: Service | Workload) -> Step:
    route, verdict = journey.route, journey.outbound
    source = route.source
    owner = f"service {found.key}" if isinstance(found, Service) else names.shown(found)
    if isinstance(found, Workload) and waypoint.is_source(store, found, source, route.src):
        return Step("waypoint", f"the source is the waypoint of {owner}: not once more")
    said: list[Finding] = []
    shown = []
    for holder in waypoint_holders(store, route):
        assert holder.reference is not None  # holders of none are left out
        shown.append(gateway.name(holder.reference))
        said += _referred(store, route, holder)
    is_obstacle = verdict is not None and verdict.reason is Reason.UNKNOWN_WAYPOINT
    text = f"{owner} is reached through {' or '.join(shown)}"
    if is_obstacle:
        text += ", which leads nowhere"
    return Step("waypoint", text, is_obstacle, tuple(said))


def _referred(store: Store, route: Route, holder: Holder) -> list[Finding]:
    """Whom a reference leads to, or what became of it."""
    reference = holder.reference
    assert reference is not None
    found = holder.find(store, route.source, route.dst.ip, Mode.WAYPOINT)
    if found:
        return [finding(True, f"{names.shown(one.workload)}, port {one.port}") for one in found]
    name, port = gateway.name(reference), reference.hbone_mtls_port
    target = store.find(reference.destination)
    if not isinstance(target, Service):
        return [finding(False, f"nobody is called {name}")]
    members = standings(store, route.source, target, port, Mode.WAYPOINT)
    if not members:
        return [finding(False, f"service {target.key} has no endpoints")]
    return [finding(one.bar is None, one.text) for one in members]


# --- services


def _service(store: Store, journey: Journey, service: Service) -> Iterator[Step]:
    """The port and the endpoints of a service that is dialled directly."""
    route, verdict = journey.route, journey.outbound
    port, is_refused = route.dst.port, False
    if verdict is not None:
        is_refused = verdict.reason is Reason.NO_HEALTHY_UPSTREAM
    if port not in service.ports:
        text = f"service {service.key} has no port {port}; it has {ports_of(service)}"
        yield Step("port", text, is_refused)
        return
    target = service.ports[port]
    shown = f"{port} of the service is {target} of its endpoints"
    yield Step("port", shown if target else f"{port} is a named port, which endpoints know")
    found = standings(store, route.source, service, port, Mode.STANDARD)
    usable = sum(one.bar is None for one in found)
    text = f"{usable} of {len(found)} may be used" if found else "there are none"
    barred = Mark.BAD if is_refused else Mark.NOTE
    said = tuple(Finding(barred if one.bar else Mark.GOOD, one.text) for one in found)
    yield Step("endpoints", text, is_refused, said)


# --- hops


def _hops(journey: Journey) -> Iterator[Step]:
    verdict = journey.outbound
    if verdict is None:
        yield _plain(journey)
        return
    if verdict.reason in _HOP_REASONS:
        yield Step("hop", verdict.reason.describe(verdict.detail), is_obstacle=True)
        return
    if not verdict.hops:
        return
    ways = list(zip(verdict.hops, journey.arrivals, strict=False))
    is_barred = [
        hop.protocol is HopProtocol.TCP and arrival.workload is not None for hop, arrival in ways
    ]
    if len(ways) == 1:
        yield Step("hop", _hop(*ways[0]), is_barred[0])
        return
    tunnels = sum(hop.protocol is not HopProtocol.TCP for hop, _ in ways)
    said = tuple(
        finding(arrival.outcome is Outcome.ENCRYPTED, _hop(hop, arrival) + _fate(arrival))
        for hop, arrival in ways
    )
    yield Step("hop", f"{tunnels} of {len(ways)} ways are tunnels", any(is_barred), said)


def _plain(journey: Journey) -> Step:
    ends = [one for one in journey.arrivals if one.workload is not None]
    if not ends:
        return Step("hop", f"plain TCP to {journey.route.dst}")
    said = tuple(
        Finding(Mark.NOTE, f"{names.shown(one.workload)} at {one.address}")
        for one in ends
        if one.workload is not None
    )
    return Step(
        "hop",
        "plain TCP to one of its endpoints" if len(ends) > 1 else f"plain TCP to {ends[0].address}",
        False,
        said if len(ends) > 1 else (),
    )


def _hop(hop: Hop, arrival: Arrival) -> str:
    who = names.shown(arrival.workload) if arrival.workload is not None else ""
    match hop.protocol:
        case HopProtocol.TCP if who:
            return f"plain TCP to {hop.place}: {who} is not enrolled (protocol TCP)"
        case HopProtocol.TCP:
            return f"plain TCP to {hop.place}"
        case HopProtocol.HBONE:
            there = f"{arrival.kind.value} {who}" if arrival.kind is not Kind.WORKLOAD else who
            return (
                f"HBONE to {there} at {hop.place}, authority {hop.authority}, expecting "
                f"{_all(hop.sans)}"
            )
        case HopProtocol.DOUBLE_HBONE:
            inner = _all(hop.inner_sans) or "nobody"
            return (
                f"HBONE to gateway {who} at {hop.place}, expecting {_all(hop.sans)}; inside it "
                f"HBONE with authority {hop.inner_authority}, expecting {inner}"
            )


def _fate(arrival: Arrival) -> str:
    is_lost = arrival.outcome in (Outcome.DENIED, Outcome.REFUSED)
    return f": {arrival.outcome.value} there" if is_lost else ""


def _all(identities: tuple[object, ...]) -> str:
    return " or ".join(str(one) for one in identities)
