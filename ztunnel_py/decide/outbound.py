# SPDX-License-Identifier: Apache-2.0
"""Decides connections captured on 15001: where to go, and how.

In order (spec dataplane, section 2.3): a call to the proxy itself is refused; a service with a
waypoint goes there; what answers for the address is found; what nobody answers for passes
through; a workload that was called by its own address goes through its own waypoint; the rest is
dialled directly. A destination that must not be dialled directly never is: what does not resolve
is a denial.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from ztunnel_py.decide import baggage, gateway, labels, lookup, upstream, waypoint
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.key import CapturedReading
from ztunnel_py.decide.refusal import Refused, denial
from ztunnel_py.decide.verdict import (
    FORWARD_TTL_S,
    FORWARDED_NETWORK,
    Action,
    Hop,
    HopProtocol,
    Verdict,
)
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.service import Service
from ztunnel_py.state.workload import Protocol, WorkloadInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ztunnel_py.decide.key import OutboundKey, RemoteKey
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.decide.upstream import Upstream, Upstreams
    from ztunnel_py.decide.verdict import Lookup
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.address import Ip, SockAddr
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import GatewayAddress, Workload

_T = TypeVar("_T")
_WEIGHT_MAX = (1 << 32) - 1
"""What a hop's weight may be for every engine."""


class _Leg(NamedTuple):
    """A hop before its labels and its final weight."""

    protocol: HopProtocol
    address: SockAddr
    workload: Workload | None = None
    service: Service | None = None
    """The one that the connection was meant for; never the waypoint's."""
    authority: str = ""
    sans: tuple[Identity, ...] = ()
    weight: float = 1
    inner_sans: tuple[Identity, ...] = ()
    lookup: Lookup | None = None


class _Sides(NamedTuple):
    """The client, as labels know it."""

    plain: labels.Side
    proved: labels.Side
    """With its identity, which the server sees where there is mutual TLS."""


class _Way(NamedTuple):
    """All that a connection may do next."""

    hops: tuple[Hop, ...]
    crosses: bool
    """Some of them lead to other networks."""
    looks_up: bool
    """Some of them lead to workloads that have a hostname only."""
    epoch: int | None = None
    """Holds in this discovery epoch only; None: as long as the members of the service."""
    upstreams: Upstreams = ()
    """Those that the hops lead to, one each; empty if it is not that simple."""


def is_self_call(settings: Settings, destination: SockAddr) -> bool:
    """Whether an application calls the proxy's own listeners on loopback."""
    return destination.port in settings.illegal_ports and destination.ip.is_loopback


def decide(
    store: Store, settings: Settings, key: OutboundKey, local: Workload | WorkloadInfo
) -> Verdict:
    """The verdict for `key`; `local` is the workload that connects, or how it was asked for.

    All usable endpoints become hops, so that a cached verdict keeps balancing.
    """
    reading = CapturedReading(key)
    try:
        if is_self_call(settings, reading.dst):
            raise Refused(Reason.SELF_CALL)
        if isinstance(local, WorkloadInfo):
            raise Refused(Reason.UNKNOWN_WORKLOAD, str(local))
        return _Decision(store, settings, reading, local).verdict()
    except Refused as refused:
        return denial(local, refused, reading.uses)


def decide_remote(
    store: Store, settings: Settings, key: RemoteKey, local: Workload | WorkloadInfo
) -> Verdict:
    """Whom a connection through a gateway has reached: the labels and log fields of its one hop.

    What the server says of itself takes the place of what was known of the endpoint, and its
    identity is the one that it proved. A refusal says nothing new. Source: spec dataplane, 43.
    """
    address = NetworkAddress(settings.network, key.dst.ip)
    service = store.at(address, local.namespace)
    if key.baggage is None or isinstance(local, WorkloadInfo) or not isinstance(service, Service):
        return Verdict.deny(Reason.NO_SERVICE, str(key.dst))
    said = baggage.parse(key.baggage)
    there = labels.claimed(said, key.identity)._replace(log_name=said.workload_name)
    source = labels.known(local, local.identity)
    hop = Hop(
        HopProtocol.DOUBLE_HBONE,
        key.dst,
        labels.traffic("source", source, there, service, is_mutual_tls=True),
        labels.log_fields(source, there, service, is_mutual_tls=True),
    )
    name = f"{local.namespace}/{local.name}"
    return Verdict(Action.FORWARD, hops=(hop,), workload=name, ttl_s=FORWARD_TTL_S)


class _Decision:
    """The steps of one decision, in order."""

    def __init__(
        self, store: Store, settings: Settings, key: CapturedReading, local: Workload
    ) -> None:
        self._store = store
        self._settings = settings
        self._key = key
        self._dst = key.dst
        self._local = local

    def verdict(self) -> Verdict:
        local, dst = self._local, self._dst
        address = NetworkAddress(self._settings.network, dst.ip)
        found = self._store.at(address, local.namespace)
        service = found if isinstance(found, Service) else None
        if service is not None and (waypoints := waypoint.of_service(service)):
            return self._forward(self._way(self._through(waypoints, service)), service)

        address = NetworkAddress(local.network, dst.ip)
        upstreams = upstream.find(self._store, local, address, dst.port, Mode.STANDARD)
        if upstreams:
            return self._forward(self._way_to(upstreams, service), upstreams[0].service)
        if service is not None and not service.is_passthrough:
            raise Refused(Reason.NO_HEALTHY_UPSTREAM, str(dst))
        return self._forward(self._way([_Leg(HopProtocol.TCP, dst)]), None)

    def _way_to(self, upstreams: Upstreams, service: Service | None) -> _Way:
        """How to go to any of `upstreams`; kept with the members of their service.

        It follows from them and from this connection alone, but for what leads through gateways,
        which is good for one epoch, and for what calls a workload, which may read the source.
        """
        via = upstreams[0].service
        if service is None or via is None:
            return self._way(_usable(self._legs(u, service) for u in upstreams))
        members, epoch = self._store.members(via), self._store.discovery_epoch
        key = (self._local, self._dst, self._settings)
        kept = cast("_Way | None", members.derived(key))
        if kept is None or kept.epoch not in (None, epoch):
            former = cast("_Way | None", members.former(key))
            kept = self._way_of_members(upstreams, service, former)
            members.keep(key, kept)
        return kept

    def _way_of_members(self, upstreams: Upstreams, service: Service, former: _Way | None) -> _Way:
        """The way to endpoints of `service`; hops that are still good are the former ones."""
        if any(u.workload.network != self._local.network for u in upstreams):
            way = self._way(_usable(self._legs(u, service) for u in upstreams))
            return way._replace(epoch=self._store.discovery_epoch)
        pairs = () if former is None else zip(former.upstreams, former.hops, strict=False)
        known = {upstream.workload.uid: (upstream, hop) for upstream, hop in pairs}
        sides = self._sides()

        def hop_to(upstream: Upstream) -> Iterator[tuple[Upstream, Hop]]:
            good = known.get(upstream.workload.uid)
            if good is not None and good[0] == upstream:
                yield upstream, good[1]
            else:
                for leg in self._legs(upstream, service):
                    yield upstream, _hop(leg, sides, upstream.weight)

        used, hops = zip(*_usable(map(hop_to, upstreams)), strict=True)
        return _Way(hops, crosses=False, looks_up=_looks_up(hops), upstreams=used)

    def _legs(self, found: Upstream, service: Service | None) -> Iterator[_Leg]:
        """How to go to one upstream: directly, or through the waypoint of a called workload."""
        workload = found.workload
        if workload.network != self._local.network:
            yield from _shared(self._across(found, service), found.weight)
            return
        if (
            service is None
            and workload.waypoint is not None
            and not waypoint.is_source(self._store, workload, self._local, self._key.src)
        ):
            via = self._through([(workload.waypoint, 1)], found.service)
            yield from _shared(via, found.weight)
            return
        original, asked = self._dst.ip, found.service
        if workload.protocol is Protocol.HBONE:
            port = self._settings.inbound_port
            target, unknown = lookup.place(found, original, port, is_authority=True)
            authority = str(target._replace(port=found.port))
            if unknown is not None:
                authority = f"{unknown.hostname}:{found.port}"
            yield self._hbone(found, target, authority, asked)._replace(lookup=unknown)
        else:
            target, unknown = lookup.place(found, original, found.port)
            protocol = HopProtocol.TCP
            yield _Leg(protocol, target, workload, asked, weight=found.weight, lookup=unknown)

    def _through(
        self, waypoints: list[tuple[GatewayAddress, int]], service: Service | None
    ) -> list[_Leg]:
        """How to go to waypoints: always HBONE, and the authority is what was asked for."""

        def legs(reference: GatewayAddress, weight: int) -> Iterator[_Leg]:
            found, original = waypoint.resolve(self._store, self._local, reference, self._dst.ip)
            hops = _usable(self._to_waypoint(u, original, service) for u in found)
            yield from hops if len(waypoints) == 1 else _shared(hops, weight)

        return _usable(legs(reference, weight) for reference, weight in waypoints)

    def _to_waypoint(
        self, found: Upstream, original: Ip, service: Service | None
    ) -> Iterator[_Leg]:
        if found.workload.network != self._local.network:
            yield from _shared(self._across(found, service), found.weight)
            return
        target, unknown = lookup.place(found, original, found.port)
        yield self._hbone(found, target, str(self._dst), service)._replace(lookup=unknown)

    def _hbone(
        self, found: Upstream, target: SockAddr, authority: str, service: Service | None
    ) -> _Leg:
        sans = found.service.sans if found.service is not None else ()
        return _Leg(
            HopProtocol.HBONE,
            target,
            found.workload,
            service,
            authority,
            (*sans, found.workload.identity),
            found.weight,
        )

    def _across(self, found: Upstream, service: Service | None) -> list[_Leg]:
        """How to go to a workload or waypoint of another network: through its gateway.

        Only what was called as a service can cross: the gateway is told a name, not an address.
        """
        if service is None:
            raise Refused(Reason.NO_SERVICE, str(self._dst))
        reference = found.workload.network_gateway
        if reference is None:
            raise Refused(Reason.NO_ROUTE, str(found.workload))
        gateways, original = gateway.resolve(self._store, self._local, reference, self._dst.ip)
        inner = () if found.service is None else found.service.sans

        def legs(via: Upstream) -> Iterator[_Leg]:
            target, unknown = lookup.place(via, original, via.port)
            authority = f"{service.hostname}:{self._dst.port}"
            leg = self._hbone(via, target, authority, service)
            protocol = HopProtocol.DOUBLE_HBONE
            yield leg._replace(protocol=protocol, inner_sans=inner, lookup=unknown)

        return _usable(legs(via) for via in gateways)

    def _sides(self) -> _Sides:
        plain = labels.known(self._local, None)
        return _Sides(plain, plain._replace(principal=str(self._local.identity)))

    def _way(self, legs: list[_Leg]) -> _Way:
        """What the legs are for the engine: with labels and whole weights."""
        sides = self._sides()
        weighed = zip(legs, _whole(legs), strict=True)
        hops = tuple(_hop(leg, sides, weight) for leg, weight in weighed)
        crosses = any(hop.protocol is HopProtocol.DOUBLE_HBONE for hop in hops)
        return _Way(hops, crosses, _looks_up(hops))

    def _forward(self, way: _Way, service: Service | None) -> Verdict:
        local = self._local
        headers = [("baggage", baggage.render(local))]
        if way.crosses:
            headers.append((FORWARDED_NETWORK, self._settings.network))
        return Verdict(
            Action.FORWARD,
            hops=way.hops,
            headers=tuple(headers),
            forwarded_host=service.hostname if service is not None else "",
            workload=f"{local.namespace}/{local.name}",
            uses_source=self._key.uses.source,
            uses_host=self._key.uses.host,
            uses_claims=self._key.uses.claims,
            looks_up=way.looks_up,
            ttl_s=FORWARD_TTL_S,
        )


def _looks_up(hops: Iterable[Hop]) -> bool:
    return any(hop.lookup is not None for hop in hops)


def _usable(ways: Iterable[Iterable[_T]]) -> list[_T]:
    """What all ways that can be gone consist of; if there is none, the first obstacle is raised."""
    found: list[_T] = []
    obstacle: Refused | None = None
    for way in ways:
        try:
            found.extend(way)
        except Refused as refused:
            obstacle = obstacle or refused
    if not found and obstacle is not None:
        raise obstacle
    return found


def _shared(legs: list[_Leg], weight: float) -> list[_Leg]:
    """`legs` with their weights scaled to the sum `weight`."""
    total = sum(leg.weight for leg in legs)
    return [leg._replace(weight=leg.weight * weight / total) for leg in legs]


def _whole(legs: list[_Leg]) -> list[int]:
    """The legs' weights as whole numbers: unchanged if they are whole, else finely scaled."""
    weights = [leg.weight for leg in legs]
    if all(isinstance(weight, int) for weight in weights):
        return [int(weight) for weight in weights]
    unit = _WEIGHT_MAX / max(weights)
    return [max(1, round(weight * unit)) for weight in weights]


def _hop(leg: _Leg, sides: _Sides, weight: int) -> Hop:
    is_mutual_tls = leg.protocol is not HopProtocol.TCP
    source = sides.proved if is_mutual_tls else sides.plain
    workload = leg.workload
    side = labels.NOBODY if workload is None else labels.known(workload, workload.identity)
    return Hop(
        leg.protocol,
        leg.address,
        _only(labels.traffic("source", source, side, leg.service, is_mutual_tls)),
        labels.log_fields(source, side, leg.service, is_mutual_tls),
        weight,
        leg.authority,
        _only(leg.sans),
        inner_authority=leg.authority if leg.protocol is HopProtocol.DOUBLE_HBONE else "",
        inner_sans=leg.inner_sans,
        lookup=leg.lookup,
    )


@functools.lru_cache(maxsize=8192)
def _only(value: _T) -> _T:
    """The one copy of what the hops to all pods of a deployment have."""
    return value
