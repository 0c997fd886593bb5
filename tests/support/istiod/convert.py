# SPDX-License-Identifier: Apache-2.0
"""State as the control plane says it: the inverse of `ztunnel_py.xds.decode`, for what istiod says.

Source: spec state, sections 2.2, 2.3 and 2.5.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any as Payload
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import UInt32Value

from ztunnel_py.proto import authorization_pb2 as security
from ztunnel_py.proto import workload_pb2 as wds
from ztunnel_py.proto.discovery_pb2 import Resource
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.policy import StringMatchKind
from ztunnel_py.state.service import BalanceMode, IpFamilies
from ztunnel_py.state.workload import Protocol
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.state.address import Cidr
    from ztunnel_py.state.policy import Match, Policy, ServiceAccountMatch, StringMatch
    from ztunnel_py.state.service import LoadBalancer, Ports
    from ztunnel_py.state.store import PolicyUpdate, ServiceUpdate, WorkloadUpdate
    from ztunnel_py.state.workload import GatewayAddress

_TRUST_DOMAIN = "cluster.local"
_IP_FAMILIES = {
    None: "AUTOMATIC",
    IpFamilies.DUAL: "DUAL",
    IpFamilies.IPV4: "IPV4_ONLY",
    IpFamilies.IPV6: "IPV6_ONLY",
}


def workload(update: WorkloadUpdate) -> Resource:
    """A workload, named by its uid, with its addresses as aliases."""
    w = update.workload
    message = wds.Workload(
        uid=w.uid,
        name=w.name,
        namespace=w.namespace,
        addresses=[ip.packed for ip in w.ips],
        hostname=w.hostname,
        network=w.network,
        tunnel_protocol="NONE" if w.protocol is Protocol.TCP else "HBONE",
        trust_domain="" if w.trust_domain == _TRUST_DOMAIN else w.trust_domain,
        service_account=w.service_account,
        waypoint=_gateway(w.waypoint),
        network_gateway=_gateway(w.network_gateway),
        node=w.node,
        canonical_name=w.canonical_name,
        canonical_revision=w.canonical_revision,
        workload_type=(w.workload_type or "deployment").upper(),
        workload_name=w.workload_name,
        native_tunnel=w.native_tunnel,
        services={str(key): _port_list(ports) for key, ports in update.ports.items()},
        authorization_policies=w.authorization_policies,
        status=w.health.value.upper(),
        cluster_id=w.cluster_id,
        network_mode=_words(w.network_mode.value),
    )
    if any(w.locality):
        message.locality.CopyFrom(wds.Locality(**w.locality._asdict()))
    if (tunnel := w.application_tunnel) is not None:
        made = wds.ApplicationTunnel(protocol=tunnel.protocol.value, port=tunnel.port or 0)
        message.application_tunnel.CopyFrom(made)
    if w.capacity != 1:
        message.capacity.CopyFrom(UInt32Value(value=w.capacity))
    aliases = [f"{w.network}/{ip}" for ip in w.ips]
    return _resource(ADDRESS, w.uid, wds.Address(workload=message), aliases)


def service(update: ServiceUpdate) -> Resource:
    """A service, named by namespace and hostname, with its addresses as aliases."""
    s = update.service
    message = wds.Service(
        name=s.name,
        namespace=s.namespace,
        hostname=s.hostname,
        addresses=[
            *map(_network_address, s.vips),
            *(_range(vip.network, vip.cidr) for vip in s.cidr_vips),
        ],
        ports=_port_list(s.ports).ports,
        subject_alt_names=s.subject_alt_names,
        waypoint=_gateway(s.waypoint),
        load_balancing=_load_balancing(s.load_balancer),
        ip_families=_IP_FAMILIES[s.ip_families],
        canonical=s.canonical,
        weighted_waypoints=[
            wds.WeightedWaypoint(destination=_gateway(w.destination), weight=w.weight)
            for w in s.weighted_waypoints
        ],
        visibility=s.visibility.value.upper(),
    )
    return _resource(ADDRESS, str(s.key), wds.Address(service=message), map(str, s.vips))


def policy(update: PolicyUpdate) -> Resource:
    """A policy, named by its key; its version is empty, as istiod's are."""
    resource = _resource(AUTHORIZATION, update.key, _policy(update.policy))
    resource.version = ""
    return resource


def _policy(p: Policy) -> security.Authorization:
    return security.Authorization(
        name=p.name,
        namespace=p.namespace,
        scope=_words(p.scope.value),
        action=p.action.value.upper(),
        rules=[
            security.Rule(clauses=[security.Clause(matches=map(_match, clause)) for clause in rule])
            for rule in p.rules
        ],
        dry_run=p.is_dry_run,
    )


def _match(m: Match) -> security.Match:
    return security.Match(
        namespaces=map(_string, m.namespaces),
        not_namespaces=map(_string, m.not_namespaces),
        principals=map(_string, m.principals),
        not_principals=map(_string, m.not_principals),
        service_accounts=map(_account, m.service_accounts),
        not_service_accounts=map(_account, m.not_service_accounts),
        source_ips=map(_cidr, m.source_ips),
        not_source_ips=map(_cidr, m.not_source_ips),
        destination_ips=map(_cidr, m.destination_ips),
        not_destination_ips=map(_cidr, m.not_destination_ips),
        destination_ports=m.destination_ports,
        not_destination_ports=m.not_destination_ports,
    )


def _string(match: StringMatch) -> security.StringMatch:
    match match.kind:
        case StringMatchKind.EXACT:
            return security.StringMatch(exact=match.value)
        case StringMatchKind.PREFIX:
            return security.StringMatch(prefix=match.value)
        case StringMatchKind.SUFFIX:
            return security.StringMatch(suffix=match.value)
        case StringMatchKind.PRESENCE:
            return security.StringMatch(presence=Empty())


def _account(match: ServiceAccountMatch) -> security.ServiceAccountMatch:
    return security.ServiceAccountMatch(
        namespace=match.namespace, service_account=match.service_account
    )


def _cidr(cidr: Cidr) -> security.Address:
    return security.Address(address=cidr.network_address.packed, length=cidr.prefixlen)


def _resource(
    type_url: str,
    name: str,
    message: wds.Address | security.Authorization,
    aliases: Iterable[str] = (),
) -> Resource:
    payload = message.SerializeToString(deterministic=True)
    return Resource(
        name=name,
        version=hashlib.blake2b(payload, digest_size=8).hexdigest(),
        resource=Payload(type_url=type_url, value=payload),
        aliases=aliases,
    )


def _gateway(reference: GatewayAddress | None) -> wds.GatewayAddress | None:
    if reference is None:
        return None
    to, port = reference.destination, reference.hbone_mtls_port
    if isinstance(to, NetworkAddress):
        return wds.GatewayAddress(address=_network_address(to), hbone_mtls_port=port)
    hostname = wds.NamespacedHostname(namespace=to.namespace, hostname=to.hostname)
    return wds.GatewayAddress(hostname=hostname, hbone_mtls_port=port)


def _network_address(address: NetworkAddress) -> wds.NetworkAddress:
    return wds.NetworkAddress(network=address.network, address=address.ip.packed)


def _range(network: str, cidr: Cidr) -> wds.NetworkAddress:
    address = cidr.network_address.packed
    return wds.NetworkAddress(network=network, address=address, length=cidr.prefixlen)


def _port_list(ports: Ports) -> wds.PortList:
    pairs = [wds.Port(service_port=port, target_port=to) for port, to in ports.items()]
    return wds.PortList(ports=pairs)


def _load_balancing(balancer: LoadBalancer | None) -> wds.LoadBalancing | None:
    if balancer is None:
        return None
    mode = balancer.mode
    return wds.LoadBalancing(
        routing_preference=[scope.value.upper() for scope in balancer.routing_preferences],
        mode="UNSPECIFIED_MODE" if mode is BalanceMode.STANDARD else mode.value.upper(),
        health_policy=_words(balancer.health_policy.value),
    )


def _words(name: str) -> str:
    """`HostNetwork` as protobuf writes it, `HOST_NETWORK`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
