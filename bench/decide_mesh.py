# SPDX-License-Identifier: Apache-2.0
"""Makes the meshes that `bench.decide` decides in, as updates and as the control plane's bytes."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from ztunnel_py.proto import workload_pb2
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.policy import (
    Match,
    Policy,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)
from ztunnel_py.state.service import Service
from ztunnel_py.state.store import PolicyUpdate, ServiceUpdate, WorkloadUpdate
from ztunnel_py.state.workload import Locality, NamespacedHostname, Protocol, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE, HOST, PORT = "shop", "web.shop.svc.cluster.local", 80
KEY = NamespacedHostname(NAMESPACE, HOST)
VIP = ipaddress.IPv4Address("10.96.0.1")
_PODS = ipaddress.IPv4Address("10.128.0.0")
_ZONES, _NODES = 3, 250
RULES = 10


def pod(number: int, is_endpoint: bool) -> WorkloadUpdate:
    """A pod with everything that a real one has."""
    deployment = "web" if is_endpoint else f"other-{number % 500}"
    name = f"{deployment}-{number:06}"
    ports = {KEY: {PORT: 8080}} if is_endpoint else {}
    workload = Workload(
        namespace=NAMESPACE,
        uid=f"Kubernetes//Pod/{NAMESPACE}/{name}",
        name=name,
        ips=(_PODS + number,),
        protocol=Protocol.HBONE,
        trust_domain="cluster.local",
        service_account=deployment,
        node=f"node-{number % _NODES}",
        cluster_id="Kubernetes",
        workload_name=deployment,
        workload_type="deployment",
        canonical_name=deployment,
        canonical_revision="v1",
        locality=Locality("eu", f"eu-{number % _ZONES}"),
        services=tuple(ports),
    )
    return WorkloadUpdate(workload, ports)


def pods(n_endpoints: int, n_others: int) -> Iterator[WorkloadUpdate]:
    """The endpoints of the service, then others."""
    for number in range(n_endpoints + n_others):
        yield pod(number, number < n_endpoints)


def service() -> ServiceUpdate:
    """The only service."""
    vips = (NetworkAddress("", VIP),)
    return ServiceUpdate(Service("web", NAMESPACE, HOST, vips=vips, ports={PORT: 8080}))


def policies(count: int, namespace: str) -> Iterator[PolicyUpdate]:
    """Policies whose rules want a client that never comes, at a port that it does come to."""
    for number in range(count):
        rules = tuple(_rule(f"cluster.local/ns/ns-{number}/sa/sa-{i}") for i in range(RULES))
        policy = Policy(
            f"policy-{number}", namespace, PolicyScope.NAMESPACE, PolicyAction.DENY, rules
        )
        yield PolicyUpdate(policy.key, policy)


def _rule(principal: str) -> tuple[tuple[Match, ...], ...]:
    return (
        (Match(destination_ports=(8080,)),),
        (Match(principals=(StringMatch(StringMatchKind.EXACT, principal),)),),
    )


def payload(update: WorkloadUpdate) -> bytes:
    """The pod as istiod sends it."""
    workload = update.workload
    message = workload_pb2.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        addresses=[ip.packed for ip in workload.ips],
        tunnel_protocol=workload_pb2.TunnelProtocol.HBONE,
        service_account=workload.service_account,
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_type=workload_pb2.WorkloadType.DEPLOYMENT,
        workload_name=workload.workload_name,
        cluster_id=workload.cluster_id,
        locality=workload_pb2.Locality(
            region=workload.locality.region, zone=workload.locality.zone
        ),
    )
    for key, ports in update.ports.items():
        listed = message.services[str(key)].ports
        for port, target in ports.items():
            listed.add(service_port=port, target_port=target)
    return workload_pb2.Address(workload=message).SerializeToString()
