# SPDX-License-Identifier: Apache-2.0
"""Resources of the control plane: what they mean, and which are refused."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.wrappers_pb2 import UInt32Value

from tests.state.build import at, ip
from ztunnel_py.proto import authorization_pb2 as security
from ztunnel_py.proto import workload_pb2 as wds
from ztunnel_py.state.policy import (
    Match,
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
    Visibility,
    WeightedWaypoint,
)
from ztunnel_py.state.store import ServiceUpdate, Store, WorkloadUpdate
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
from ztunnel_py.xds import decode
from ztunnel_py.xds.decode import ResourceError

if TYPE_CHECKING:
    from ztunnel_py.state.policy import Policy
    from ztunnel_py.state.service import Service

WEB = NamespacedHostname("shop", "web.shop.svc.cluster.local")
V4, V6 = bytes([10, 0, 0, 7]), ipaddress.IPv6Address("2001:db8::7").packed


def workload(**fields: Any) -> WorkloadUpdate:
    message = wds.Address(workload=wds.Workload(uid="u", **fields))
    update = decode.address(message.SerializeToString())
    assert isinstance(update, WorkloadUpdate)
    return update


def service(**fields: Any) -> Service:
    message = wds.Address(service=wds.Service(hostname="web", namespace="shop", **fields))
    update = decode.address(message.SerializeToString())
    assert isinstance(update, ServiceUpdate)
    return update.service


def policy(**fields: Any) -> Policy:
    message = security.Authorization(name="p", namespace="shop", **fields)
    return decode.authorization("shop/p", message.SerializeToString()).policy


def one_match(**fields: Any) -> Match:
    rule = security.Rule(clauses=[security.Clause(matches=[security.Match(**fields)])])
    (((match,),),) = policy(rules=[rule]).rules
    return match


def test_workload_with_every_field() -> None:
    gateway = wds.GatewayAddress(
        hostname=wds.NamespacedHostname(namespace="gw", hostname="gw.test"), hbone_mtls_port=15008
    )
    waypoint = wds.GatewayAddress(
        address=wds.NetworkAddress(network="n", address=V4), hbone_mtls_port=15009
    )
    update = workload(
        name="web-0",
        namespace="shop",
        addresses=[V4, V6],
        hostname="web.example",
        network="n",
        tunnel_protocol=wds.HBONE,
        trust_domain="td",
        service_account="web",
        waypoint=waypoint,
        network_gateway=gateway,
        node="node-a",
        canonical_name="web",
        canonical_revision="v2",
        workload_type=wds.CRONJOB,
        workload_name="web-job",
        native_tunnel=True,
        application_tunnel=wds.ApplicationTunnel(protocol=wds.ApplicationTunnel.PROXY, port=15088),
        services={str(WEB): wds.PortList(ports=[wds.Port(service_port=80, target_port=8080)])},
        authorization_policies=["shop/p"],
        status=wds.UNHEALTHY,
        cluster_id="c1",
        locality=wds.Locality(region="eu", zone="eu-1", subzone="a"),
        network_mode=wds.HOST_NETWORK,
        capacity=UInt32Value(value=0),
    )

    assert update.ports == {WEB: {80: 8080}}
    assert update.workload == Workload(
        namespace="shop",
        uid="u",
        name="web-0",
        ips=(ip("10.0.0.7"), ip("2001:db8::7")),
        hostname="web.example",
        network="n",
        protocol=Protocol.HBONE,
        network_mode=NetworkMode.HOST_NETWORK,
        health=Health.UNHEALTHY,
        trust_domain="td",
        service_account="web",
        node="node-a",
        cluster_id="c1",
        workload_name="web-job",
        workload_type="cronjob",
        canonical_name="web",
        canonical_revision="v2",
        locality=Locality("eu", "eu-1", "a"),
        native_tunnel=True,
        application_tunnel=ApplicationTunnel(TunnelProtocol.PROXY, 15088),
        waypoint=GatewayAddress(at("10.0.0.7", "n"), 15009),
        network_gateway=GatewayAddress(NamespacedHostname("gw", "gw.test"), 15008),
        services=(WEB,),
        authorization_policies=("shop/p",),
        capacity=0,
    )


@pytest.mark.spec("state-31")
def test_defaults_of_an_empty_workload() -> None:
    found = workload().workload

    assert (found.trust_domain, found.service_account) == ("cluster.local", "default")
    assert (found.cluster_id, found.workload_type) == ("Kubernetes", "deployment")
    assert (found.protocol, found.health, found.capacity) == (Protocol.TCP, Health.HEALTHY, 1)
    assert (found.waypoint, found.network_gateway) == (None, None)
    assert found.application_tunnel is None


def test_service_with_every_field() -> None:
    waypoint = wds.GatewayAddress(
        hostname=wds.NamespacedHostname(namespace="gw", hostname="wp"), hbone_mtls_port=15008
    )
    found = service(
        name="web",
        addresses=[wds.NetworkAddress(network="n", address=V4)],
        ports=[wds.Port(service_port=80), wds.Port(service_port=443, target_port=8443)],
        subject_alt_names=["spiffe://td/ns/shop/sa/web", "not an identity"],
        waypoint=waypoint,
        weighted_waypoints=[wds.WeightedWaypoint(destination=waypoint, weight=3)],
        load_balancing=wds.LoadBalancing(
            routing_preference=[wds.LoadBalancing.NETWORK, wds.LoadBalancing.ZONE],
            mode=wds.LoadBalancing.FAILOVER,
            health_policy=wds.LoadBalancing.ALLOW_ALL,
        ),
        ip_families=wds.DUAL,
        canonical=True,
        visibility=wds.Service.NAMESPACE,
    )

    reference = GatewayAddress(NamespacedHostname("gw", "wp"), 15008)
    assert (found.name, found.vips) == ("web", (at("10.0.0.7", "n"),))
    assert found.ports == {80: 0, 443: 8443}
    assert [str(identity) for identity in found.sans] == ["spiffe://td/ns/shop/sa/web"]
    assert found.waypoint == reference
    assert found.weighted_waypoints == (WeightedWaypoint(reference, 3),)
    assert found.load_balancer == LoadBalancer(
        (Scope.NETWORK, Scope.ZONE), BalanceMode.FAILOVER, HealthPolicy.ALLOW_ALL
    )
    assert (found.ip_families, found.canonical) == (IpFamilies.DUAL, True)
    assert found.visibility is Visibility.NAMESPACE


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        pytest.param(
            {"workload": {"addresses": [bytes(5)]}},
            "an address has 5 bytes, neither 4 nor 16",
            marks=pytest.mark.spec("state-32"),
        ),
        pytest.param(
            {"workload": {"tunnel_protocol": 2}},
            "unknown tunnel protocol 2",
            marks=pytest.mark.spec("state-33"),
        ),
        ({"workload": {"tunnel_protocol": 9}}, "unknown tunnel protocol 9"),
        ({"workload": {"network_mode": 9}}, "unknown network mode 9"),
        ({"workload": {"status": 9}}, "unknown status 9"),
        (
            {"workload": {"application_tunnel": {"protocol": 9}}},
            "unknown application tunnel protocol 9",
        ),
        pytest.param(
            {"workload": {"services": {"web": {}}}},
            "service 'web' is not namespace/hostname",
            marks=pytest.mark.spec("state-34"),
        ),
        ({"workload": {"waypoint": {}}}, "a gateway address has no destination"),
        ({"workload": {"network_gateway": {}}}, "a gateway address has no destination"),
        pytest.param(
            {"service": {"load_balancing": {"routing_preference": [0]}}},
            "unknown routing preference 0",
            marks=pytest.mark.spec("state-35"),
        ),
        ({"service": {"load_balancing": {"mode": 9}}}, "unknown load balancing mode 9"),
        ({"service": {"load_balancing": {"health_policy": 9}}}, "unknown health policy 9"),
        ({"service": {"ip_families": 9}}, "unknown IP families 9"),
        ({"service": {"addresses": [{"address": bytes(3)}]}}, "an address has 3 bytes"),
        (
            {"service": {"addresses": [{"address": V4, "length": 33}]}},
            "10.0.0.7 has no prefix of 33 bits",
        ),
        ({"service": {"weighted_waypoints": [{"weight": 1}]}}, "a weighted waypoint has no"),
        ({}, "unknown address type"),
    ],
)
def test_refused_resources_say_why(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(ResourceError, match=f"^{problem}"):
        decode.address(wds.Address(**message).SerializeToString())


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(ResourceError, match="failed to decode"):
        decode.address(b"\x0a\xff")
    with pytest.raises(ResourceError, match="failed to decode"):
        decode.authorization("shop/p", b"\x0a\xff")


@pytest.mark.spec("state-35")
def test_unknown_visibility_is_public() -> None:
    assert service(visibility=99).visibility is Visibility.PUBLIC


def test_unknown_workload_type_is_a_deployment() -> None:
    assert workload(workload_type=77).workload.workload_type == "deployment"


@pytest.mark.spec("state-36")
@pytest.mark.parametrize(
    ("length", "found_at"),
    [(24, {"10.0.0.9"}), (32, set()), (None, set()), (0, {"10.0.0.9", "10.9.9.9"})],
)
def test_address_with_a_shorter_length_is_a_range(length: int | None, found_at: set[str]) -> None:
    addresses = [wds.NetworkAddress(address=V4, length=length)]
    store = Store()
    store.apply([ServiceUpdate(service(addresses=addresses))])

    reached = {text for text in ("10.0.0.9", "10.9.9.9") if store.service_at(at(text))}
    assert reached == found_at
    assert store.service_at(at("10.0.0.7")) is not None


def test_length_counts_in_its_low_byte_only() -> None:
    network = ipaddress.ip_network("10.0.0.0/24")
    found = service(addresses=[wds.NetworkAddress(address=V4, length=256 + 24)])

    assert found.cidr_vips == (CidrVip("", network),)


def test_ports_are_cut_to_sixteen_bits() -> None:
    ports = [wds.Port(service_port=65536 + 80, target_port=65536 + 8080)]

    assert service(ports=ports).ports == {80: 8080}


def test_policy_with_every_kind_of_match() -> None:
    exact, prefix = security.StringMatch(exact="a"), security.StringMatch(prefix="b")
    suffix = security.StringMatch(suffix="c")
    presence = security.StringMatch()
    presence.presence.SetInParent()
    near, far = security.Address(address=V4, length=24), security.Address(address=V6, length=128)
    match = one_match(
        namespaces=[exact],
        not_namespaces=[prefix],
        service_accounts=[security.ServiceAccountMatch(namespace="a", service_account="b")],
        not_service_accounts=[security.ServiceAccountMatch(namespace="c", service_account="d")],
        principals=[suffix],
        not_principals=[presence],
        source_ips=[near],
        not_source_ips=[far],
        destination_ips=[far],
        not_destination_ips=[near],
        destination_ports=[80],
        not_destination_ports=[65536 + 443],
    )

    ranges = ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("2001:db8::7/128")
    assert match == Match(
        namespaces=(StringMatch(StringMatchKind.EXACT, "a"),),
        not_namespaces=(StringMatch(StringMatchKind.PREFIX, "b"),),
        principals=(StringMatch(StringMatchKind.SUFFIX, "c"),),
        not_principals=(StringMatch(StringMatchKind.PRESENCE),),
        service_accounts=(ServiceAccountMatch("a", "b"),),
        not_service_accounts=(ServiceAccountMatch("c", "d"),),
        source_ips=ranges[:1],
        not_source_ips=ranges[1:],
        destination_ips=ranges[1:],
        not_destination_ips=ranges[:1],
        destination_ports=(80,),
        not_destination_ports=(443,),
    )


def test_policy_keeps_its_scope_action_and_shape() -> None:
    found = policy(
        scope=security.WORKLOAD_SELECTOR,
        action=security.DENY,
        dry_run=True,
        rules=[security.Rule(), security.Rule(clauses=[security.Clause()])],
    )

    assert (found.scope, found.action) == (PolicyScope.WORKLOAD_SELECTOR, PolicyAction.DENY)
    assert (found.is_dry_run, found.rules) == (True, ((), ((),)))


@pytest.mark.parametrize("fields", [{"scope": 9}, {"action": 9}])
def test_policy_of_an_unknown_kind_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ResourceError, match=r"unknown (scope|action) 9"):
        policy(**fields)


def test_what_cannot_match_is_left_out_of_a_policy() -> None:
    match = one_match(
        source_ips=[
            security.Address(address=bytes(5), length=8),
            security.Address(address=V4, length=33),
        ],
        principals=[security.StringMatch()],
        destination_ports=[80],
    )

    assert match == Match(destination_ports=(80,))
