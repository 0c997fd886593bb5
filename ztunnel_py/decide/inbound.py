# SPDX-License-Identifier: Apache-2.0
"""Decides what reaches the local workload: CONNECT streams (15008) and plaintext (15006).

In order (spec dataplane, sections 6 and 7): where the connection is meant to go must be a place of
this workload; the port is resolved; the proxy's own ports are refused; then policies are asked,
with the application's real port. What a client can say of itself (baggage, forwarded, network)
goes into labels and nowhere else.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.decide import authority, baggage, labels, waypoint
from ztunnel_py.decide.authority import HostPort
from ztunnel_py.decide.key import CapturedReading, RequestReading
from ztunnel_py.decide.rbac import Attempt
from ztunnel_py.decide.refusal import Refused, denial
from ztunnel_py.decide.verdict import (
    DENIAL_TTL_S,
    FORWARD_TTL_S,
    Action,
    Hop,
    HopProtocol,
    Preface,
    Verdict,
)
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import NetworkAddress, SockAddr
from ztunnel_py.state.workload import TunnelProtocol, WorkloadInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.decide.key import InboundKey, PassthroughKey, Uses
    from ztunnel_py.decide.labels import Side
    from ztunnel_py.decide.rbac import Rulebook, Ruling
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.service import Service
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload

_LOOPBACK: dict[int, Ip] = {
    4: ipaddress.IPv4Address("127.0.0.1"),
    6: ipaddress.IPv6Address("::1"),
}


class _Target(NamedTuple):
    """Where a connection ends."""

    address: SockAddr
    """At the workload: what policies see."""
    dialled: SockAddr
    services: list[Service]
    """Those that it may have been meant for."""
    keep_source: bool = True
    preface: Preface | None = None


def decide(
    store: Store,
    rulebook: Rulebook,
    settings: Settings,
    key: InboundKey,
    local: Workload | WorkloadInfo,
) -> Verdict:
    """The verdict for a CONNECT stream; `local` is as in `decide.outbound.decide`."""
    reading = RequestReading(key)
    try:
        asked = _authority(reading)
        workload = _known(local)
        _validate(store, settings, reading, workload, asked)
        target = _target(store, settings, reading, workload, asked)
        target = target._replace(keep_source=target.keep_source and settings.keep_source)
    except Refused as refused:
        return denial(local, refused, reading.uses)
    source = _source(store, settings, reading)
    service = _intended(store, target, workload, reading)
    headers: tuple[tuple[str, str], ...] = ()
    if settings.response_baggage:
        headers = (("baggage", baggage.render(workload)),)
    hop = _hop(target, source, workload, service, is_mutual_tls=True)
    attempt = Attempt.of(reading.src, target.address, reading.identity)
    ruling = rulebook.judge(workload, attempt, settings.policy_log_level)
    return _judged(ruling, workload, hop, reading.uses, headers, target.preface)


def decide_passthrough(
    store: Store,
    rulebook: Rulebook,
    settings: Settings,
    key: PassthroughKey,
    local: Workload | WorkloadInfo,
) -> Verdict:
    """The verdict for plaintext; `local` is as in `decide.outbound.decide`."""
    reading = CapturedReading(key)
    dst = reading.dst
    try:
        if dst.port in settings.illegal_ports:
            raise Refused(Reason.SELF_CALL)
        workload = _known(local)
    except Refused as refused:
        return denial(local, refused, reading.uses)
    target = _Target(dst, dst, store.services_of(workload))
    found = store.workload_at(NetworkAddress(settings.network, reading.src))
    source = labels.NOBODY if found is None else labels.known(found, None)
    service = _first_with_port(store, target, workload)
    hop = _hop(target, source, workload, service, is_mutual_tls=False)
    attempt = Attempt.of(reading.src, dst, None)
    ruling = rulebook.judge(workload, attempt, settings.policy_log_level)
    return _judged(ruling, workload, hop, reading.uses)


# --- where to


def _authority(key: RequestReading) -> SockAddr | HostPort:
    try:
        return authority.parse(key.authority)
    except ValueError:
        raise Refused(Reason.BAD_AUTHORITY, key.authority) from None


def _known(local: Workload | WorkloadInfo) -> Workload:
    if isinstance(local, WorkloadInfo):
        raise Refused(Reason.UNKNOWN_WORKLOAD, str(local))
    return local


def _validate(
    store: Store,
    settings: Settings,
    key: RequestReading,
    local: Workload,
    asked: SockAddr | HostPort,
) -> None:
    """Refuse an address that is neither this workload's nor one that it is the waypoint of."""
    if isinstance(asked, HostPort) or asked.ip == key.local or local.application_tunnel is not None:
        return
    behind = store.at(NetworkAddress(settings.network, asked.ip))
    reference = behind.waypoint if behind is not None else None
    if reference is None or not waypoint.serves(store, reference, local, key.local):
        raise Refused(Reason.IP_MISMATCH, f"{key.local} != {asked.ip}")


def _target(
    store: Store,
    settings: Settings,
    key: RequestReading,
    local: Workload,
    asked: SockAddr | HostPort,
) -> _Target:
    """The application's address: always the one that was dialled, with the resolved port."""
    if isinstance(asked, HostPort):
        service = store.service_of_host(asked.host, local.namespace)
        if service is None:
            raise Refused(Reason.UNKNOWN_HOST, asked.host)
        services = [service]
        port = _port_of_host(store, service, local, asked)
    else:
        services = store.services_of(local)
        port = asked.port
    if port in settings.illegal_ports:
        raise Refused(Reason.SELF_CALL)
    tunnel = local.application_tunnel
    if tunnel is None:
        address = SockAddr(key.local, port)
        return _Target(address, address, services)

    address = SockAddr(key.local, port if tunnel.port is None else tunnel.port)
    told = asked if isinstance(asked, SockAddr) else _vip(settings, services[0], asked)
    if tunnel.protocol is TunnelProtocol.NONE:
        return _Target(address, address, services)
    if not settings.localhost_app_tunnel:
        return _Target(address, address, services, preface=Preface(told))
    dialled = SockAddr(_LOOPBACK[key.local.version], address.port)
    return _Target(address, dialled, services, keep_source=False, preface=Preface(told))


def _port_of_host(store: Store, service: Service, local: Workload, asked: HostPort) -> int:
    endpoint = store.endpoint(service, local.uid)
    mapped = endpoint.ports.get(asked.port) if endpoint is not None else None
    if port := mapped or service.ports.get(asked.port):
        return port
    raise Refused(Reason.NO_PORT, f"{asked.host}:{asked.port}")


def _vip(settings: Settings, service: Service, asked: HostPort) -> SockAddr:
    """An address to name in the PROXY header, which has no room for a hostname."""

    def rank(vip: NetworkAddress) -> int:
        return 0 if vip.network != settings.network else 1 + (vip.ip.version == 4)

    if not service.vips:
        raise Refused(Reason.NO_VIP, asked.host)
    best = max(reversed(service.vips), key=rank)
    return SockAddr(best.ip, asked.port)


# --- telemetry


def _source(store: Store, settings: Settings, key: RequestReading) -> Side:
    """The client: as the state knows it, else as it describes itself.

    Through a gateway of another network the address is the gateway's, so it is not looked up.
    """
    network = key.network
    is_foreign = network is not None and network.lower() != settings.network.lower()
    if not is_foreign:
        found = store.workload_at(NetworkAddress(settings.network, key.src))
        if found is not None:
            return labels.known(found, key.identity)
    said = baggage.parse(key.baggage if settings.response_baggage else ())
    return labels.claimed(said, key.identity)


def _intended(
    store: Store, target: _Target, local: Workload, key: RequestReading
) -> Service | None:
    """The service that was probably called: as the client says, else the first with that port.

    The client is not asked if its answer could change nothing.
    """
    guess = _first_with_port(store, target, local)
    if all(service is guess for service in target.services):
        return guess
    host = key.forwarded_host
    named = (s for s in target.services if host and s.hostname == host)
    return next(named, guess)


def _first_with_port(store: Store, target: _Target, local: Workload) -> Service | None:
    port = target.address.port
    return next((s for s in target.services if port in _targets(store, s, local)), None)


def _targets(store: Store, service: Service, local: Workload) -> Iterable[int]:
    """The ports that `service` may send to at `local`."""
    endpoint = store.endpoint(service, local.uid)
    own = {} if endpoint is None else endpoint.ports
    return {
        target
        for port, general in service.ports.items()
        for target in (general, own.get(port, general))
    }


def _hop(
    target: _Target, source: Side, local: Workload, service: Service | None, is_mutual_tls: bool
) -> Hop:
    side = labels.known(local, local.identity)
    return Hop(
        HopProtocol.TCP,
        target.dialled,
        labels.traffic("destination", source, side, service, is_mutual_tls),
        labels.log_fields(source, side, service, is_mutual_tls),
        keep_source=target.keep_source,
    )


# --- verdicts


def _judged(
    ruling: Ruling,
    local: Workload,
    hop: Hop,
    uses: Uses,
    headers: tuple[tuple[str, str], ...] = (),
    preface: Preface | None = None,
) -> Verdict:
    """What the policies say; a denial keeps the hop for its labels."""
    is_allowed = ruling.is_allowed
    return Verdict(
        Action.FORWARD if is_allowed else Action.DENY,
        Reason.OK if is_allowed else Reason.POLICY_DENIED,
        ruling.detail,
        hops=(hop,),
        headers=headers if is_allowed else (),
        preface=preface if is_allowed else None,
        policy=ruling.text,
        workload=f"{local.namespace}/{local.name}",
        notes=ruling.notes,
        uses_source=uses.source,
        uses_host=uses.host,
        uses_claims=uses.claims,
        ttl_s=FORWARD_TTL_S if is_allowed else DENIAL_TTL_S,
    )
