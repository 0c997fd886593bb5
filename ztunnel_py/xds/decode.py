# SPDX-License-Identifier: Apache-2.0
"""Resources of the control plane as updates of the state.

A resource that is wrong is refused with what is wrong; its neighbours are not touched. Defaults are
those of the wire, which differ from a local file's. Texts that many resources share are kept once.
Source: spec state, sections 2.2 and 2.3.
"""

from __future__ import annotations

import functools
import ipaddress
import sys
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ztunnel_py.proto import authorization_pb2, workload_pb2
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.policy import (
    Match,
    Policy,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel_py.state.service import (
    BalanceMode,
    CidrVip,
    HealthPolicy,
    IpFamilies,
    LoadBalancer,
    Scope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel_py.state.store import PolicyUpdate, ServiceUpdate, WorkloadUpdate
from ztunnel_py.state.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Health,
    Locality,
    NamespacedHostname,
    NetworkMode,
    Protocol,
    TunnelProtocol,
    Workload,
)
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import TypeVar

    from ztunnel_py.state.address import Cidr, Ip
    from ztunnel_py.state.service import Ports

    K = TypeVar("K")
    T = TypeVar("T")

log = logger("ztunnel::xds")

_PORT_MASK = 0xFFFF
_LENGTH_MASK = 0xFF
_TRUST_DOMAIN, _SERVICE_ACCOUNT, _CLUSTER = "cluster.local", "default", "Kubernetes"

_PROTOCOLS: dict[int, Protocol] = {
    workload_pb2.TunnelProtocol.NONE: Protocol.TCP,
    workload_pb2.TunnelProtocol.HBONE: Protocol.HBONE,
}
_NETWORK_MODES: dict[int, NetworkMode] = {
    workload_pb2.NetworkMode.STANDARD: NetworkMode.STANDARD,
    workload_pb2.NetworkMode.HOST_NETWORK: NetworkMode.HOST_NETWORK,
}
_HEALTH: dict[int, Health] = {
    workload_pb2.WorkloadStatus.HEALTHY: Health.HEALTHY,
    workload_pb2.WorkloadStatus.UNHEALTHY: Health.UNHEALTHY,
}
_TYPES: dict[int, str] = {
    workload_pb2.WorkloadType.DEPLOYMENT: "deployment",
    workload_pb2.WorkloadType.CRONJOB: "cronjob",
    workload_pb2.WorkloadType.POD: "pod",
    workload_pb2.WorkloadType.JOB: "job",
}
_TUNNELS: dict[int, TunnelProtocol] = {
    workload_pb2.ApplicationTunnel.NONE: TunnelProtocol.NONE,
    workload_pb2.ApplicationTunnel.PROXY: TunnelProtocol.PROXY,
}
_SCOPES: dict[int, Scope] = {
    workload_pb2.LoadBalancing.REGION: Scope.REGION,
    workload_pb2.LoadBalancing.ZONE: Scope.ZONE,
    workload_pb2.LoadBalancing.SUBZONE: Scope.SUBZONE,
    workload_pb2.LoadBalancing.NODE: Scope.NODE,
    workload_pb2.LoadBalancing.CLUSTER: Scope.CLUSTER,
    workload_pb2.LoadBalancing.NETWORK: Scope.NETWORK,
}
_MODES: dict[int, BalanceMode] = {
    workload_pb2.LoadBalancing.UNSPECIFIED_MODE: BalanceMode.STANDARD,
    workload_pb2.LoadBalancing.STRICT: BalanceMode.STRICT,
    workload_pb2.LoadBalancing.FAILOVER: BalanceMode.FAILOVER,
    workload_pb2.LoadBalancing.PASSTHROUGH: BalanceMode.PASSTHROUGH,
}
_HEALTH_POLICIES: dict[int, HealthPolicy] = {
    workload_pb2.LoadBalancing.ONLY_HEALTHY: HealthPolicy.ONLY_HEALTHY,
    workload_pb2.LoadBalancing.ALLOW_ALL: HealthPolicy.ALLOW_ALL,
}
_FAMILIES: dict[int, IpFamilies | None] = {
    workload_pb2.IPFamilies.AUTOMATIC: None,
    workload_pb2.IPFamilies.IPV4_ONLY: IpFamilies.IPV4,
    workload_pb2.IPFamilies.IPV6_ONLY: IpFamilies.IPV6,
    workload_pb2.IPFamilies.DUAL: IpFamilies.DUAL,
}
_POLICY_SCOPES: dict[int, PolicyScope] = {
    authorization_pb2.Scope.GLOBAL: PolicyScope.GLOBAL,
    authorization_pb2.Scope.NAMESPACE: PolicyScope.NAMESPACE,
    authorization_pb2.Scope.WORKLOAD_SELECTOR: PolicyScope.WORKLOAD_SELECTOR,
}
_ACTIONS: dict[int, PolicyAction] = {
    authorization_pb2.Action.ALLOW: PolicyAction.ALLOW,
    authorization_pb2.Action.DENY: PolicyAction.DENY,
}
_STRING_KINDS = {
    "exact": StringMatchKind.EXACT,
    "prefix": StringMatchKind.PREFIX,
    "suffix": StringMatchKind.SUFFIX,
    "presence": StringMatchKind.PRESENCE,
}


class ResourceError(ValueError):
    """A resource is refused; the text says why."""


def address(payload: bytes) -> WorkloadUpdate | ServiceUpdate:
    """The update that an `istio.workload.Address` means.

    Raises:
        ResourceError: it cannot be parsed, or breaks a rule.
    """
    message = workload_pb2.Address()
    _parse(message, payload)
    match message.WhichOneof("type"):
        case "workload":
            return _workload(message.workload)
        case "service":
            return ServiceUpdate(_service(message.service))
        case _:
            raise ResourceError("unknown address type")


def authorization(name: str, payload: bytes) -> PolicyUpdate:
    """The update that an `istio.security.Authorization` of that resource name means.

    Raises:
        ResourceError: it cannot be parsed, or has an unknown scope or action.
    """
    message = authorization_pb2.Authorization()
    _parse(message, payload)
    policy = Policy(
        name=message.name,
        namespace=_shared(message.namespace),
        scope=_known(_POLICY_SCOPES, message.scope, "scope"),
        action=_known(_ACTIONS, message.action, "action"),
        rules=tuple(
            tuple(tuple(_match(name, m) for m in clause.matches) for clause in rule.clauses)
            for rule in message.rules
        ),
        is_dry_run=message.dry_run,
    )
    return PolicyUpdate(name, policy)


# --- workloads


def _workload(message: workload_pb2.Workload) -> WorkloadUpdate:
    ports = {
        _service_key(key): _ports(entry.ports) for key, entry in sorted(message.services.items())
    }
    workload = Workload(
        namespace=_shared(message.namespace),
        uid=message.uid,
        name=message.name,
        ips=tuple(_ip(packed) for packed in message.addresses),
        hostname=message.hostname,
        network=_shared(message.network),
        protocol=_known(_PROTOCOLS, message.tunnel_protocol, "tunnel protocol"),
        network_mode=_known(_NETWORK_MODES, message.network_mode, "network mode"),
        health=_known(_HEALTH, message.status, "status"),
        trust_domain=_shared(message.trust_domain or _TRUST_DOMAIN),
        service_account=_shared(message.service_account or _SERVICE_ACCOUNT),
        node=_shared(message.node),
        cluster_id=_shared(message.cluster_id or _CLUSTER),
        workload_name=_shared(message.workload_name),
        workload_type=_TYPES.get(message.workload_type, "deployment"),
        canonical_name=_shared(message.canonical_name),
        canonical_revision=_shared(message.canonical_revision),
        locality=_locality(
            message.locality.region, message.locality.zone, message.locality.subzone
        ),
        native_tunnel=message.native_tunnel,
        application_tunnel=_application_tunnel(message),
        waypoint=_optional_gateway(message, "waypoint"),
        network_gateway=_optional_gateway(message, "network_gateway"),
        services=tuple(ports),
        authorization_policies=tuple(map(_shared, message.authorization_policies)),
        capacity=message.capacity.value if message.HasField("capacity") else 1,
    )
    return WorkloadUpdate(workload, ports)


def _application_tunnel(message: workload_pb2.Workload) -> ApplicationTunnel | None:
    if not message.HasField("application_tunnel"):
        return None
    tunnel = message.application_tunnel
    protocol = _known(_TUNNELS, tunnel.protocol, "application tunnel protocol")
    return ApplicationTunnel(protocol, (tunnel.port & _PORT_MASK) or None)


# --- services


def _service(message: workload_pb2.Service) -> Service:
    vips: list[NetworkAddress] = []
    ranges: list[CidrVip] = []
    for one in message.addresses:
        if (cidr := _range(one)) is None:
            vips.append(_network_address(one))
        else:
            ranges.append(CidrVip(_shared(one.network), cidr))
    is_private = message.visibility == workload_pb2.Service.Visibility.NAMESPACE
    return Service(
        name=message.name,
        namespace=_shared(message.namespace),
        hostname=_shared(message.hostname),
        vips=tuple(vips),
        cidr_vips=tuple(ranges),
        ports=_ports(message.ports),
        subject_alt_names=tuple(message.subject_alt_names),
        waypoint=_optional_gateway(message, "waypoint"),
        weighted_waypoints=tuple(map(_weighted_waypoint, message.weighted_waypoints)),
        load_balancer=_load_balancer(message),
        ip_families=_known(_FAMILIES, message.ip_families, "IP families"),
        canonical=message.canonical,
        visibility=Visibility.NAMESPACE if is_private else Visibility.PUBLIC,
    )


def _load_balancer(message: workload_pb2.Service) -> LoadBalancer | None:
    if not message.HasField("load_balancing"):
        return None
    found = message.load_balancing
    return LoadBalancer(
        tuple(_known(_SCOPES, one, "routing preference") for one in found.routing_preference),
        _known(_MODES, found.mode, "load balancing mode"),
        _known(_HEALTH_POLICIES, found.health_policy, "health policy"),
    )


def _weighted_waypoint(message: workload_pb2.WeightedWaypoint) -> WeightedWaypoint:
    if not message.HasField("destination"):
        raise ResourceError("a weighted waypoint has no destination")
    return WeightedWaypoint(_gateway(message.destination), message.weight)


# --- what both have


def _optional_gateway(
    message: workload_pb2.Workload | workload_pb2.Service, field: str
) -> GatewayAddress | None:
    return _gateway(getattr(message, field)) if message.HasField(field) else None


def _gateway(message: workload_pb2.GatewayAddress) -> GatewayAddress:
    port = message.hbone_mtls_port & _PORT_MASK
    match message.WhichOneof("destination"):
        case "hostname":
            host = message.hostname
            return _gateway_at(_hostname(host.namespace, host.hostname), port)
        case "address":
            return _gateway_at(_network_address(message.address), port)
        case _:
            raise ResourceError("a gateway address has no destination")


@functools.lru_cache(maxsize=4096)
def _gateway_at(destination: NetworkAddress | NamespacedHostname, port: int) -> GatewayAddress:
    return GatewayAddress(destination, port)


def _network_address(message: workload_pb2.NetworkAddress) -> NetworkAddress:
    return NetworkAddress(_shared(message.network), _ip(message.address))


def _range(message: workload_pb2.NetworkAddress) -> Cidr | None:
    """The range that a service's address stands for; None for a single address."""
    ip = _ip(message.address)
    length = message.length & _LENGTH_MASK
    if not message.HasField("length") or length == ip.max_prefixlen:
        return None
    if length > ip.max_prefixlen:
        raise ResourceError(f"{ip} has no prefix of {length} bits")
    return _cidr(ip, length)


def _ip(packed: bytes) -> Ip:
    match len(packed):
        case 4:
            return ipaddress.IPv4Address(packed)
        case 16:
            return ipaddress.IPv6Address(packed)
        case length:
            raise ResourceError(f"an address has {length} bytes, neither 4 nor 16")


def _cidr(ip: Ip, length: int) -> Cidr:
    """The range around `ip`; bits of the host are tolerated."""
    return ipaddress.ip_network((ip, length), strict=False)


def _ports(ports: Iterable[workload_pb2.Port]) -> Ports:
    """Service port to target port; of a port that is named twice the last one counts."""
    pairs = ((one.service_port & _PORT_MASK, one.target_port & _PORT_MASK) for one in ports)
    return _shared_ports(tuple(pairs))


@functools.lru_cache(maxsize=4096)
def _shared_ports(pairs: tuple[tuple[int, int], ...]) -> Ports:
    return dict(pairs)


@functools.lru_cache(maxsize=1024)
def _locality(region: str, zone: str, subzone: str) -> Locality:
    return Locality(region, zone, subzone)


@functools.lru_cache(maxsize=16384)
def _hostname(namespace: str, hostname: str) -> NamespacedHostname:
    return NamespacedHostname(_shared(namespace), _shared(hostname))


def _service_key(key: str) -> NamespacedHostname:
    namespace, slash, hostname = key.partition("/")
    if not slash:
        raise ResourceError(f"service {key!r} is not namespace/hostname")
    return _hostname(namespace, hostname)


# --- policies


def _match(name: str, message: authorization_pb2.Match) -> Match:
    return Match(
        namespaces=tuple(_strings(name, message.namespaces)),
        not_namespaces=tuple(_strings(name, message.not_namespaces)),
        principals=tuple(_strings(name, message.principals)),
        not_principals=tuple(_strings(name, message.not_principals)),
        service_accounts=tuple(map(_account, message.service_accounts)),
        not_service_accounts=tuple(map(_account, message.not_service_accounts)),
        source_ips=tuple(_ranges(name, message.source_ips)),
        not_source_ips=tuple(_ranges(name, message.not_source_ips)),
        destination_ips=tuple(_ranges(name, message.destination_ips)),
        not_destination_ips=tuple(_ranges(name, message.not_destination_ips)),
        destination_ports=tuple(one & _PORT_MASK for one in message.destination_ports),
        not_destination_ports=tuple(one & _PORT_MASK for one in message.not_destination_ports),
    )


def _account(message: authorization_pb2.ServiceAccountMatch) -> ServiceAccountMatch:
    return ServiceAccountMatch(_shared(message.namespace), _shared(message.service_account))


def _strings(name: str, messages: Iterable[authorization_pb2.StringMatch]) -> Iterator[StringMatch]:
    """Matches of no kind are dropped, as ztunnel does [Q-7], but not in silence."""
    for message in messages:
        kind = message.WhichOneof("match_type")
        if kind is None:
            log.warn("a string match without a kind is ignored", {"policy": name})
        else:
            value = "" if kind == "presence" else getattr(message, kind)
            yield StringMatch(_STRING_KINDS[kind], value)


def _ranges(name: str, messages: Iterable[authorization_pb2.Address]) -> Iterator[Cidr]:
    """Ranges that cannot be parsed are dropped, as ztunnel does [Q-7], but not in silence."""
    for message in messages:
        try:
            yield _cidr(_ip(message.address), message.length)
        except ValueError as error:
            log.warn("an IP range is ignored", {"policy": name, "error": str(error)})


# --- small things


def _parse(message: workload_pb2.Address | authorization_pb2.Authorization, payload: bytes) -> None:
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise ResourceError(f"failed to decode: {error}") from None


def _known(table: Mapping[K, T], value: K, what: str) -> T:
    try:
        return table[value]
    except KeyError:
        raise ResourceError(f"unknown {what} {value}") from None


def _shared(text: str) -> str:
    """The one copy of a text that many resources have."""
    return sys.intern(text)
