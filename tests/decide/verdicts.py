# SPDX-License-Identifier: Apache-2.0
"""The verdicts on a connection, asked of the real decisions and of nothing that explains them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide import inbound, names, outbound, upstream, waypoint
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action, HopProtocol, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.service import Service
from ztunnel_py.state.workload import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.decide.names import Route
    from ztunnel_py.decide.verdict import Hop
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload


def is_encrypted_and_allowed(store: Store, src: str, dst: str) -> bool:
    """Whether every way that a connection may take is a tunnel whose end lets it in."""
    route = names.route(store, src, dst)
    if not route.is_known or route.source.protocol is not Protocol.HBONE:
        return False
    first = sent(store, route)
    if first.action is not Action.FORWARD:
        return False
    if any(hop.protocol is HopProtocol.TCP for hop in first.hops):
        return False
    doubles = [hop for hop in first.hops if hop.protocol is HopProtocol.DOUBLE_HBONE]
    if not all(hop.inner_sans for hop in doubles):
        return False
    ends = [verdict for hop in first.hops for verdict in _received(store, route, hop)]
    return all(verdict.action is Action.FORWARD for verdict in ends)


def sent(store: Store, route: Route) -> Verdict:
    """What the source's node says."""
    key = OutboundKey("w", route.src, route.dst)
    return outbound.decide(store, Settings(network=route.source.network), key, route.source)


def plainly_received(store: Store, route: Route, there: Workload) -> Verdict:
    """What the node of `there` says of plain TCP to it."""
    settings = Settings(network=there.network)
    key = PassthroughKey("w", route.src, route.dst)
    return inbound.decide_passthrough(store, Rulebook(store), settings, key, there)


def _received(store: Store, route: Route, hop: Hop) -> Iterator[Verdict]:
    """What is said behind a hop: by a workload, or a waypoint that has a proxy."""
    if hop.protocol is HopProtocol.DOUBLE_HBONE:
        yield from _received_beyond(store, route, hop)
        return
    key = InboundKey("w", hop.address.ip, route.src, route.source.identity, hop.authority)
    for workload in store.workloads():
        is_there = hop.address.ip in workload.ips and workload.identity in hop.sans
        is_direct = hop.authority.startswith((f"{hop.address.ip}:", f"[{hop.address.ip}]:"))
        ends_tunnels = workload.native_tunnel and not is_direct
        if is_there and workload.network == route.source.network and not ends_tunnels:
            settings = Settings(network=workload.network)
            yield inbound.decide(store, Rulebook(store), settings, key, workload)


def _received_beyond(store: Store, route: Route, hop: Hop) -> Iterator[Verdict]:
    """What is said on the other network, by endpoints that are dialled directly."""
    address = NetworkAddress(route.source.network, route.dst.ip)
    called = store.at(address, route.source.namespace)
    if isinstance(called, Service) and waypoint.of_service(called):
        return
    for found in upstream.find(store, route.source, address, route.dst.port, Mode.STANDARD):
        there = found.workload
        is_elsewhere = there.network != route.source.network and there.ips
        if is_elsewhere and there.protocol is Protocol.HBONE:
            if there.identity not in hop.inner_sans:
                yield Verdict.deny(Reason.IO)
            proved, text = route.source.identity, hop.inner_authority
            key = InboundKey("w", there.ips[0], hop.address.ip, proved, text)
            settings = Settings(network=there.network)
            yield inbound.decide(store, Rulebook(store), settings, key, there)
