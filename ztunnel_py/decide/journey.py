# SPDX-License-Identifier: Apache-2.0
"""A journey: what both nodes decide about one connection, and how it ends.

Only asks: `outbound.decide` for the source's node, then `inbound.decide` or `decide_passthrough`
wherever that leads. Nodes are taken to be configured for the network of their workloads.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.decide import authority, inbound, names, outbound, upstream, waypoint
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.refusal import Refused
from ztunnel_py.decide.verdict import Action, HopProtocol
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import NetworkAddress, SockAddr
from ztunnel_py.state.service import Service
from ztunnel_py.state.workload import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.decide.names import Route
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.decide.verdict import Hop, Verdict
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload


class Outcome(enum.Enum):
    """How a connection ends, the worst first."""

    DENIED = "denied"
    """By a policy of the destination."""
    REFUSED = "refused"
    """There is no way to go on."""
    NO_UPSTREAM = "no upstream"
    PLAIN = "plain"
    """It arrives, but is not encrypted."""
    ENCRYPTED = "encrypted"
    """In a tunnel, and allowed."""


_WORST_FIRST = list(Outcome)


class Kind(enum.Enum):
    """What a hop leads to."""

    WORKLOAD = "workload"
    WAYPOINT = "waypoint"
    GATEWAY = "gateway"


class Arrival(NamedTuple):
    """One of the places where a connection may arrive, and what is said there."""

    outcome: Outcome
    reason: str
    """As logged; empty if it is let in."""
    kind: Kind = Kind.WORKLOAD
    workload: Workload | None = None
    """Who is there; None for an address that nobody knows."""
    address: SockAddr | None = None
    """What is dialled; None also where it is looked up for each connection."""
    key: InboundKey | PassthroughKey | None = None
    verdict: Verdict | None = None
    """What the proxy there decides; None if there is none, or no connection to decide on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Journey:
    """A connection from end to end."""

    route: Route
    outbound: Verdict | None
    """None if no proxy takes the source's connections."""
    arrivals: tuple[Arrival, ...]
    """One per possible hop, or one that says why there is none."""

    @property
    def decisive(self) -> Arrival:
        """The first of the worst: a connection is as safe as the worst of its possible ends."""
        return min(self.arrivals, key=lambda one: _WORST_FIRST.index(one.outcome))

    @property
    def outcome(self) -> Outcome:
        """How it ends, at worst."""
        return self.decisive.outcome


def travel(store: Store, settings: Settings, src: str, dst: str) -> Journey:
    """What happens to a connection from `src` to `dst`, which are as in `names.route`.

    Raises:
        UnknownNameError: one of them is nobody's name.
    """
    route = names.route(store, src, dst)
    rulebook = Rulebook(store)
    if not route.is_enrolled:
        ends = list(_unproxied(store, rulebook, settings, route))
        nobody = Arrival(Outcome.PLAIN, "", address=route.dst)
        return Journey(route, None, tuple(ends) or (nobody,))
    key = OutboundKey(route.source.uid, route.src, route.dst)
    verdict = outbound.decide(store, of_node(settings, route.source), key, route.source)
    if verdict.action is not Action.FORWARD:
        reason = verdict.reason.describe(verdict.detail)
        is_empty = verdict.reason is Reason.NO_HEALTHY_UPSTREAM
        outcome = Outcome.NO_UPSTREAM if is_empty else Outcome.REFUSED
        return Journey(route, verdict, (Arrival(outcome, reason),))
    arrivals = [_arrival(store, rulebook, settings, route, hop) for hop in verdict.hops]
    arrivals += _beyond(store, rulebook, settings, route, verdict)
    return Journey(route, verdict, tuple(arrivals))


def of_node(settings: Settings, workload: Workload) -> Settings:
    """The settings of the node that serves `workload`."""
    return dataclasses.replace(settings, network=workload.network)


def upstreams(store: Store, route: Route) -> upstream.Upstreams:
    """Who answers for the destination's address."""
    address = NetworkAddress(route.source.network, route.dst.ip)
    return upstream.find(store, route.source, address, route.dst.port, Mode.STANDARD)


# --- without a proxy at the source


def _unproxied(
    store: Store, rulebook: Rulebook, settings: Settings, route: Route
) -> Iterator[Arrival]:
    """Where plain TCP goes: to the endpoints among which the node's kernel chooses."""
    for found in upstreams(store, route):
        workload = found.workload
        if workload.network != route.source.network:
            continue
        try:
            ip = upstream.select_ip(found, route.dst.ip)
        except Refused:
            continue
        if ip is None:
            continue  # no kernel finds an address by its hostname
        address = SockAddr(ip, found.port)
        if workload.protocol is not Protocol.HBONE:
            yield Arrival(Outcome.PLAIN, "", workload=workload, address=address)
            continue
        key = PassthroughKey(workload.uid, route.src, address)
        node = of_node(settings, workload)
        verdict = inbound.decide_passthrough(store, rulebook, node, key, workload)
        outcome, reason = _ending(verdict, Outcome.PLAIN)
        yield Arrival(outcome, reason, Kind.WORKLOAD, workload, address, key, verdict)


# --- behind a hop


def _arrival(
    store: Store, rulebook: Rulebook, settings: Settings, route: Route, hop: Hop
) -> Arrival:
    workload = _who(store, route.source.network, hop)
    match hop.protocol:
        case HopProtocol.TCP:
            return Arrival(Outcome.PLAIN, "", workload=workload, address=hop.address)
        case HopProtocol.DOUBLE_HBONE:
            is_hopeless = not hop.inner_sans
            outcome = Outcome.REFUSED if is_hopeless else Outcome.ENCRYPTED
            reason = _unexpected() if is_hopeless else ""
            return Arrival(outcome, reason, Kind.GATEWAY, workload, hop.address)
        case HopProtocol.HBONE:
            pass
    kind = Kind.WORKLOAD if _is_direct(hop) else Kind.WAYPOINT
    if hop.lookup is not None:
        return Arrival(Outcome.ENCRYPTED, "", kind, workload)
    if workload is None or (kind is Kind.WAYPOINT and workload.native_tunnel):
        return Arrival(Outcome.ENCRYPTED, "", kind, workload, hop.address)
    key = InboundKey(workload.uid, hop.address.ip, route.src, route.source.identity, hop.authority)
    verdict = inbound.decide(store, rulebook, of_node(settings, workload), key, workload)
    outcome, reason = _ending(verdict, Outcome.ENCRYPTED)
    return Arrival(outcome, reason, kind, workload, hop.address, key, verdict)


def _beyond(
    store: Store, rulebook: Rulebook, settings: Settings, route: Route, verdict: Verdict
) -> Iterator[Arrival]:
    """The ends of inner tunnels: at workloads of other networks whose addresses are known.

    To them the connection comes from the gateway. What a waypoint does behind it is its business.
    """
    doubles = [hop for hop in verdict.hops if hop.protocol is HopProtocol.DOUBLE_HBONE]
    at = NetworkAddress(route.source.network, route.dst.ip)
    service = store.at(at, route.source.namespace)
    if not doubles or (isinstance(service, Service) and waypoint.of_service(service)):
        return
    hop = doubles[0]
    for found in upstreams(store, route):
        workload = found.workload
        is_known = bool(workload.ips) and workload.protocol is Protocol.HBONE
        if workload.network == route.source.network or not is_known:
            continue
        ip = workload.ips[0]
        address = SockAddr(ip, settings.inbound_port)
        if workload.identity not in hop.inner_sans:
            reason = _unexpected(workload.identity)
            yield Arrival(Outcome.REFUSED, reason, Kind.WORKLOAD, workload, address)
            continue
        key = InboundKey(
            workload.uid, ip, hop.address.ip, route.source.identity, hop.inner_authority
        )
        node = of_node(settings, workload)
        said = inbound.decide(store, rulebook, node, key, workload)
        outcome, reason = _ending(said, Outcome.ENCRYPTED)
        yield Arrival(outcome, reason, Kind.WORKLOAD, workload, address, key, said)


def _unexpected(identity: Identity | None = None) -> str:
    """What is logged of an inner tunnel whose end proves to be nobody that is accepted there."""
    got = "" if identity is None else f", got {identity}"
    text = f"identity verification error: peer did not present the expected SAN{got}"
    return Reason.IO.describe(text)


def _ending(verdict: Verdict, otherwise: Outcome) -> tuple[Outcome, str]:
    if verdict.action is Action.FORWARD:
        return otherwise, ""
    is_policy = verdict.reason is Reason.POLICY_DENIED
    reason = verdict.reason.describe(verdict.detail)
    return (Outcome.DENIED if is_policy else Outcome.REFUSED), reason


def _is_direct(hop: Hop) -> bool:
    """Whether the authority is a port of the workload that is dialled."""
    if hop.lookup is not None:
        return hop.lookup.authority_port is not None
    asked = authority.parse(hop.authority)
    return isinstance(asked, SockAddr) and asked.ip == hop.address.ip


def _who(store: Store, network: str, hop: Hop) -> Workload | None:
    """The workload that `hop` leads to, also one on its node's network; None if it is nobody's."""
    if hop.lookup is not None:
        return store.workload(hop.lookup.workload)
    proved, ip = hop.labels.destination_principal, hop.address.ip
    if not proved:
        return None
    found = store.workload_at(NetworkAddress(network, ip))
    if found is not None and str(found.identity) == proved:
        return found
    there = (w for w in store.workloads() if ip in w.ips and w.network == network)
    return next((w for w in there if str(w.identity) == proved), None)
