# SPDX-License-Identifier: Apache-2.0
"""The state as `/config_dump` shows it; keys are those of the local state file.

What there may be many of is made while it is written. Workloads, services and policies are those
of one moment; which endpoints a service has is asked when its turn has come, a few seconds later.
Source: spec identity-ops, section D.3. Keys that have their default are left out as ztunnel does.
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from ztunnel_py.admin.json_text import Each, InOrder
from ztunnel_py.state.policy import StringMatchKind
from ztunnel_py.state.store import PolicyUpdate, ServiceUpdate, WorkloadUpdate
from ztunnel_py.state.workload import NOWHERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ztunnel_py.state.policy import Match, Policy, StringMatch
    from ztunnel_py.state.service import Endpoint, Ports, Service
    from ztunnel_py.state.store import Store, Update
    from ztunnel_py.state.workload import GatewayAddress, Workload

Json = dict[str, Any]


def dump_state(store: Store) -> Json:
    """`workloads`, `services`, `policies` and `stagedServices`, each in its order."""
    return {
        "workloads": Each(dump_workload, InOrder(store.workloads(), attrgetter("uid"))),
        "services": Each(
            lambda service: dump_service(service, store.endpoints(service)),
            InOrder(store.services(), attrgetter("hostname")),
        ),
        "policies": Each(
            lambda entry: dump_policy(entry[1]), InOrder(store.policies().items(), itemgetter(0))
        ),
        "stagedServices": {
            str(key): _endpoints(endpoints.values()) for key, endpoints in store.staged().items()
        },
    }


def dump_local(updates: Iterable[Update]) -> Json:
    """`workloads`, `services` and `policies` of the local state, in its order."""
    found: dict[type, list[Any]] = {WorkloadUpdate: [], ServiceUpdate: [], PolicyUpdate: []}
    for update in updates:
        found[type(update)].append(update)
    return {
        "workloads": Each(_local_workload, found[WorkloadUpdate]),
        "services": Each(lambda u: dump_service(u.service, u.endpoints), found[ServiceUpdate]),
        "policies": Each(lambda u: dump_policy(u.policy), found[PolicyUpdate]),
    }


def dump_workload(w: Workload) -> Json:
    """One workload."""
    shown: Json = {
        "uid": w.uid,
        "trustDomain": w.trust_domain,
        "serviceAccount": w.service_account,
        "network": w.network,
        "workloadName": w.workload_name,
        "workloadType": w.workload_type,
        "canonicalName": w.canonical_name,
        "canonicalRevision": w.canonical_revision,
        "hostname": w.hostname,
        "node": w.node,
        "nativeTunnel": w.native_tunnel,
        "authorizationPolicies": list(w.authorization_policies),
        "services": [str(key) for key in w.services],
        "locality": w.locality._asdict() if w.locality != NOWHERE else None,
        "waypoint": _gateway(w.waypoint),
        "networkGateway": _gateway(w.network_gateway),
    }
    if w.application_tunnel is not None:
        tunnel = w.application_tunnel
        shown["applicationTunnel"] = {"protocol": tunnel.protocol.value, "port": tunnel.port}
    return {
        "workloadIps": [str(ip) for ip in w.ips],
        "protocol": w.protocol.value,
        "networkMode": w.network_mode.value,
        "name": w.name,
        "namespace": w.namespace,
        "status": w.health.value,
        "clusterId": w.cluster_id,
        "capacity": w.capacity,
        **_without_empty(shown),
    }


def _local_workload(update: WorkloadUpdate) -> Json:
    """With its services as a file names them: a mapping."""
    services = {str(key): _ports(ports) for key, ports in update.ports.items()}
    return dump_workload(update.workload) | {"services": services}


def dump_service(s: Service, endpoints: Iterable[Endpoint]) -> Json:
    """One service with the endpoints that it keeps."""
    shown: Json = {
        "cidrVips": [{"network": v.network, "cidr": str(v.cidr)} for v in s.cidr_vips],
        "waypoint": _gateway(s.waypoint),
        "weightedWaypoints": [
            {"destination": _gateway(w.destination), "weight": w.weight}
            for w in s.weighted_waypoints
        ],
        "ipFamilies": s.ip_families.value if s.ip_families is not None else None,
    }
    if s.load_balancer is not None:
        shown["loadBalancer"] = {
            "routingPreferences": [scope.value for scope in s.load_balancer.routing_preferences],
            "mode": s.load_balancer.mode.value,
            "healthPolicy": s.load_balancer.health_policy.value,
        }
    return {
        "name": s.name,
        "namespace": s.namespace,
        "hostname": s.hostname,
        "vips": [str(vip) for vip in s.vips],
        "ports": _ports(s.ports),
        "endpoints": _endpoints(endpoints),
        "subjectAltNames": list(s.subject_alt_names),
        "canonical": s.canonical,
        "visibility": s.visibility.value,
        **_without_empty(shown),
    }


def dump_policy(p: Policy) -> Json:
    """One policy."""
    return {
        "name": p.name,
        "namespace": p.namespace,
        "scope": p.scope.value,
        "action": p.action.value,
        "dryRun": p.is_dry_run,
        "rules": [[[_match(m) for m in clause] for clause in rule] for rule in p.rules],
    }


def _match(m: Match) -> Json:
    return _without_empty(
        {
            "namespaces": _strings(m.namespaces),
            "notNamespaces": _strings(m.not_namespaces),
            "principals": _strings(m.principals),
            "notPrincipals": _strings(m.not_principals),
            "serviceAccounts": _accounts(m.service_accounts),
            "notServiceAccounts": _accounts(m.not_service_accounts),
            "sourceIps": [str(cidr) for cidr in m.source_ips],
            "notSourceIps": [str(cidr) for cidr in m.not_source_ips],
            "destinationIps": [str(cidr) for cidr in m.destination_ips],
            "notDestinationIps": [str(cidr) for cidr in m.not_destination_ips],
            "destinationPorts": list(m.destination_ports),
            "notDestinationPorts": list(m.not_destination_ports),
        }
    )


def _strings(matches: tuple[StringMatch, ...]) -> list[Json]:
    return [{m.kind.value: [] if m.kind is StringMatchKind.PRESENCE else m.value} for m in matches]


def _accounts(accounts: Iterable[tuple[str, str]]) -> list[Json]:
    return [{"namespace": ns, "serviceAccount": account} for ns, account in accounts]


def _endpoints(endpoints: Iterable[Endpoint]) -> Json:
    return {
        e.workload_uid: {
            "workloadUid": e.workload_uid,
            "port": _ports(e.ports),
            "status": e.health.value,
        }
        for e in endpoints
    }


def _ports(ports: Ports) -> Json:
    return {str(port): target for port, target in ports.items()}


def _gateway(reference: GatewayAddress | None) -> Json | None:
    if reference is None:
        return None
    return {
        "destination": str(reference.destination),
        "hboneMtlsPort": reference.hbone_mtls_port,
    }


def _without_empty(shown: Mapping[str, Any]) -> Json:
    """Without what is unset: empty, none or false."""
    return {key: value for key, value in shown.items() if value}
