# SPDX-License-Identifier: Apache-2.0
"""Where captured connections go."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.state.build import at, ip, pod, service
from ztunnel_py.decide import outbound
from ztunnel_py.decide.key import OutboundKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action, HopProtocol
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.service import (
    BalanceMode,
    IpFamilies,
    LoadBalancer,
    Scope,
    Visibility,
    WeightedWaypoint,
)
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkMode,
    Protocol,
    TunnelProtocol,
    WorkloadInfo,
)

if TYPE_CHECKING:
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Update
    from ztunnel_py.state.workload import (
        Workload,
    )

CLIENT = pod("client", "10.0.0.1", "2001:db8::1", workload_name="client", node="here")
WEB = "default/web.test"
SERVES = {WEB: {80: 8080}}
VIP = "10.1.0.1"
PASSTHROUGH = LoadBalancer(mode=BalanceMode.PASSTHROUGH)


def decide(
    *updates: Update,
    to: str,
    client: Workload | WorkloadInfo = CLIENT.workload,
    src: str = "10.0.0.1",
) -> Verdict:
    store = Store()
    store.apply([CLIENT, *updates])
    return outbound.decide(store, Settings(), OutboundKey("w", ip(src), SockAddr.parse(to)), client)


def reached(verdict: Verdict) -> list[tuple[str, str]]:
    """Next hop and authority of each hop."""
    assert verdict.action is Action.FORWARD, verdict
    return sorted((str(hop.address), hop.authority) for hop in verdict.hops)


def refusal(verdict: Verdict) -> str:
    assert verdict.action is Action.DENY
    return verdict.reason.describe(verdict.detail)


def gateway(destination: str, port: int = 15008) -> GatewayAddress:
    namespace, _, rest = destination.partition("/")
    if rest[0].isdigit() or ":" in rest:
        return GatewayAddress(at(rest, namespace), port)
    return GatewayAddress(NamespacedHostname(namespace, rest), port)


# --- the connection itself


@pytest.mark.parametrize("to", ["127.0.0.1:15006", "127.9.9.9:15001", "[::1]:15008"])
def test_call_to_the_own_listeners_is_refused(to: str) -> None:
    assert decide(to=to).reason is Reason.SELF_CALL


def test_illegal_ports_elsewhere_are_no_self_call() -> None:
    assert reached(decide(to="10.9.9.9:15006")) == [("10.9.9.9:15006", "")]


def test_unknown_local_workload_is_refused() -> None:
    verdict = decide(to="10.9.9.9:80", client=WorkloadInfo("w", "ns", "sa"))

    text = "failed to fetch information about local workload: sa.ns (w)"
    assert refusal(verdict) == text


@pytest.mark.spec("dataplane-17", "state-60")
def test_unknown_destination_is_dialled_unchanged() -> None:
    verdict = decide(to="192.0.2.1:443")

    (hop,) = verdict.hops
    assert (hop.protocol, str(hop.address), hop.sans) == (HopProtocol.TCP, "192.0.2.1:443", ())
    assert hop.labels.destination_workload == hop.labels.destination_service == ""
    assert (hop.labels.source_workload, hop.labels.source_principal) == ("client", "")
    assert verdict.forwarded_host == ""
    assert not verdict.uses_source


# --- workloads


@pytest.mark.spec("dataplane-18")
def test_hbone_pod_is_reached_through_its_tunnel_also_on_the_same_node() -> None:
    verdict = decide(pod("a", "10.0.0.2", node="here"), to="10.0.0.2:8080")

    (hop,) = verdict.hops
    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:8080")]
    assert hop.sans == (Identity("cluster.local", "default", "a"),)
    assert hop.labels.connection_security_policy == "mutual_tls"
    assert hop.log.src_identity == "spiffe://cluster.local/ns/default/sa/client"
    assert hop.log.dst_identity == "spiffe://cluster.local/ns/default/sa/a"


@pytest.mark.spec("dataplane-19")
def test_tcp_pod_is_dialled_directly() -> None:
    verdict = decide(pod("a", "10.0.0.2", protocol=Protocol.TCP), to="10.0.0.2:8080")

    (hop,) = verdict.hops
    assert reached(verdict) == [("10.0.0.2:8080", "")]
    assert hop.labels.connection_security_policy == "unknown"
    assert hop.labels.destination_principal == "spiffe://cluster.local/ns/default/sa/a"
    assert (hop.log.src_identity, hop.log.dst_identity) == ("", "")


def test_ipv6_pod_has_a_bracketed_authority() -> None:
    verdict = decide(pod("a", "2001:db8::2"), to="[2001:db8::2]:8080")

    assert reached(verdict) == [("[2001:db8::2]:15008", "[2001:db8::2]:8080")]


@pytest.mark.spec("dataplane-37", "state-47")
def test_host_network_pods_are_reached_through_services_only() -> None:
    mode = NetworkMode.HOST_NETWORK
    pods = [
        pod("a", "10.0.0.2", network_mode=mode, protocol=Protocol.TCP, serves=SERVES),
        pod("b", "10.0.0.2", network_mode=mode),
    ]

    direct = decide(*pods, to="10.0.0.2:8080")
    via = decide(*pods, service("web.test", f"/{VIP}"), to=f"{VIP}:80")

    assert direct.hops[0].log.dst_workload == ""
    assert via.hops[0].log.dst_workload == "a"
    assert reached(via) == [("10.0.0.2:8080", "")]


def test_workload_by_hostname_is_refused_until_it_can_be_resolved() -> None:
    workload = pod("a", hostname="db.test", serves=SERVES)

    verdict = decide(workload, service("web.test", f"/{VIP}"), to=f"{VIP}:80")

    text = "no valid routing destination for workload: Workload{a with uid demo//Pod/default/a"
    assert refusal(verdict) == f"{text} (HBONE)}}"


# --- services


@pytest.mark.spec("dataplane-20")
def test_vip_is_mapped_to_endpoint_and_target_port() -> None:
    verdict = decide(
        pod("a", "10.0.0.2", serves={WEB: {}}), service("web.test", f"/{VIP}"), to=f"{VIP}:80"
    )

    (hop,) = verdict.hops
    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:8080")]
    assert verdict.forwarded_host == hop.log.dst_service == "web.test"
    labels = hop.labels
    assert labels.destination_service == "web.test"
    assert labels.destination_service_namespace == "default"
    assert labels.destination_service_name == "web"


@pytest.mark.spec("state-62")
@pytest.mark.parametrize(
    ("service_target", "endpoint", "expected"),
    [(0, {80: 9090}, 9090), (8080, {}, 8080), (8080, {80: 9090}, 9090)],
)
def test_target_port_is_the_endpoints_then_the_services(
    service_target: int, endpoint: dict[int, int], expected: int
) -> None:
    verdict = decide(
        service("web.test", f"/{VIP}", ports={80: service_target}),
        pod("a", "10.0.0.2", serves={WEB: endpoint}),
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [("10.0.0.2:15008", f"10.0.0.2:{expected}")]


@pytest.mark.spec("dataplane-21", "state-63")
def test_named_port_needs_an_endpoint_that_knows_it() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}", ports={80: 0}),
        pod("a", "10.0.0.2", serves={WEB: {80: 9000}}),
        pod("b", "10.0.0.3", serves={WEB: {81: 9000}}),
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:9000")]


@pytest.mark.spec("dataplane-22", "state-61")
def test_port_that_a_service_does_not_have_is_refused() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"), pod("a", "10.0.0.2", serves=SERVES), to=f"{VIP}:81"
    )

    assert refusal(verdict) == f"no healthy upstream: {VIP}:81"


@pytest.mark.spec("dataplane-23", "state-59")
def test_service_without_endpoints_is_refused() -> None:
    assert decide(service("web.test", f"/{VIP}"), to=f"{VIP}:80").reason is (
        Reason.NO_HEALTHY_UPSTREAM
    )


@pytest.mark.spec("dataplane-24")
def test_passthrough_service_is_dialled_as_it_is() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}", load_balancer=PASSTHROUGH),
        pod("a", "10.0.0.2", serves=SERVES),
        to=f"{VIP}:80",
    )

    (hop,) = verdict.hops
    assert (str(hop.address), hop.log.dst_service) == (f"{VIP}:80", "")


@pytest.mark.spec("dataplane-36")
def test_service_of_another_namespace_only_is_passed_through() -> None:
    hidden = service("web.test", f"/{VIP}", namespace="b", visibility=Visibility.NAMESPACE)

    assert reached(decide(hidden, to=f"{VIP}:80")) == [(f"{VIP}:80", "")]


@pytest.mark.spec("state-57")
def test_address_of_both_a_service_and_a_pod_is_the_services() -> None:
    verdict = decide(
        service("web.test", "/10.0.0.9"),
        pod("a", "10.0.0.2", serves=SERVES),
        pod("b", "10.0.0.9"),
        to="10.0.0.9:80",
    )

    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:8080")]


@pytest.mark.spec("state-70")
def test_endpoints_are_weighted_by_capacity() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        *(pod(f"p{n}", f"10.0.1.{n}", serves=SERVES, capacity=n) for n in (3, 1, 0)),
        to=f"{VIP}:80",
    )

    weights = {hop.log.dst_workload: hop.weight for hop in verdict.hops}
    assert weights == {"p3": 3, "p1": 1}


def test_service_of_capacity_0_only_is_refused() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("a", "10.0.0.2", serves=SERVES, capacity=0),
        to=f"{VIP}:80",
    )

    assert verdict.reason is Reason.NO_HEALTHY_UPSTREAM


@pytest.mark.spec("state-71", "dataplane-35")
@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (None, "10.0.0.2:15008"),
        (IpFamilies.DUAL, "10.0.0.2:15008"),
        (IpFamilies.IPV6, "[2001:db8::2]:15008"),
    ],
)
def test_family_restriction_of_a_service_goes_before_the_callers(
    families: IpFamilies | None, expected: str
) -> None:
    verdict = decide(
        service("web.test", f"/{VIP}", ip_families=families),
        pod("a", "2001:db8::2", "10.0.0.2", serves=SERVES),
        to=f"{VIP}:80",
    )

    assert str(verdict.hops[0].address) == expected


def test_alternative_names_of_a_service_are_accepted_before_the_endpoints_own() -> None:
    names = ("spiffe://td/ns/x/sa/y", "dns.name")
    verdict = decide(
        service("web.test", f"/{VIP}", subject_alt_names=names),
        pod("a", "10.0.0.2", serves=SERVES),
        to=f"{VIP}:80",
    )

    (hop,) = verdict.hops
    assert hop.sans == (Identity("td", "x", "y"), Identity("cluster.local", "default", "a"))


# --- locality


def ranked(balancer: LoadBalancer, *places: dict[str, Any]) -> list[str]:
    """Which endpoints, named by their index, a client in eu/eu-1 on `here` may use."""
    locality = Locality("eu", "eu-1")
    client = pod("client", "10.0.0.1", locality=locality, node="here").workload
    store = Store()
    endpoints = (pod(str(i), f"10.0.1.{i}", serves=SERVES, **p) for i, p in enumerate(places))
    store.apply([service("web.test", f"/{VIP}", load_balancer=balancer), *endpoints])
    key = OutboundKey("w", ip("10.0.0.1"), SockAddr.parse(f"{VIP}:80"))
    verdict = outbound.decide(store, Settings(), key, client)
    return sorted(hop.log.dst_workload for hop in verdict.hops)


ZONE = {"locality": Locality("eu", "eu-1")}
REGION = {"locality": Locality("eu", "eu-2")}
NOWHERE: dict[str, Any] = {}
FAILOVER = LoadBalancer((Scope.REGION, Scope.ZONE), BalanceMode.FAILOVER)


@pytest.mark.parametrize(
    ("balancer", "places", "expected"),
    [
        (None, [ZONE, REGION, NOWHERE], ["0", "1", "2"]),
        (LoadBalancer((Scope.ZONE,)), [ZONE, NOWHERE], ["0", "1"]),
        (FAILOVER, [ZONE, REGION, NOWHERE], ["0"]),
        (FAILOVER, [REGION, REGION, NOWHERE], ["0", "1"]),
        (FAILOVER, [NOWHERE], ["0"]),
        (LoadBalancer((), BalanceMode.STRICT), [ZONE, NOWHERE], ["0", "1"]),
    ],
)
def test_only_the_best_ranked_endpoints_are_used(
    balancer: LoadBalancer, places: list[dict[str, Any]], expected: list[str]
) -> None:
    assert ranked(balancer, *places) == expected


@pytest.mark.spec("state-68")
def test_strict_without_a_full_match_reaches_nobody() -> None:
    strict = LoadBalancer((Scope.REGION, Scope.ZONE), BalanceMode.STRICT)

    assert ranked(strict, REGION, NOWHERE) == []


@pytest.mark.spec("state-69")
def test_strict_node_keeps_to_the_node() -> None:
    strict = LoadBalancer((Scope.NODE,), BalanceMode.STRICT)

    assert ranked(strict, {"node": "here"}, {"node": "there"}) == ["0"]


NETWORK_FIRST = LoadBalancer((Scope.NETWORK, Scope.REGION, Scope.ZONE), BalanceMode.FAILOVER)


@pytest.mark.parametrize("count", range(1, 4))
def test_own_network_goes_before_any_locality(count: int) -> None:
    own = [NOWHERE, REGION, ZONE][:count]

    assert ranked(NETWORK_FIRST, *own, {**ZONE, "network": "far"}) == [str(count - 1)]


# --- waypoints

WAYPOINT = pod("wp", "10.0.9.1", protocol=Protocol.TCP, service_account="wp")
BY_ADDRESS = gateway("/10.0.9.1")


@pytest.mark.spec("dataplane-25", "dataplane-26", "state-58", "state-76")
@pytest.mark.parametrize("balancer", [None, PASSTHROUGH])
def test_service_with_a_waypoint_is_reached_through_it(balancer: LoadBalancer | None) -> None:
    verdict = decide(
        service("web.test", f"/{VIP}", waypoint=BY_ADDRESS, load_balancer=balancer),
        pod("a", "10.0.0.2", serves=SERVES),
        WAYPOINT,
        to=f"{VIP}:80",
    )

    (hop,) = verdict.hops
    assert reached(verdict) == [("10.0.9.1:15008", f"{VIP}:80")]
    assert hop.protocol is HopProtocol.HBONE
    assert hop.sans == (Identity("cluster.local", "default", "wp"),)
    assert (hop.log.dst_workload, hop.log.dst_service) == ("wp", "web.test")


@pytest.mark.spec("dataplane-28", "state-80")
@pytest.mark.parametrize("reference", ["/10.0.9.9", "default/absent.test"])
def test_waypoint_that_does_not_resolve_is_a_denial(reference: str) -> None:
    absent = gateway(reference)
    endpoint = pod("a", "10.0.0.2", serves=SERVES, waypoint=absent)

    through = decide(service("web.test", f"/{VIP}", waypoint=absent), endpoint, to=f"{VIP}:80")
    direct = decide(endpoint, to="10.0.0.2:80")

    text = f"unknown waypoint: waypoint {reference.removeprefix('default/')} not found"
    assert [refusal(through), refusal(direct)] == [text, text]


@pytest.mark.spec("dataplane-30")
def test_workload_waypoint_is_traversed_when_the_pod_itself_is_called() -> None:
    target = pod("a", "10.0.0.2", protocol=Protocol.TCP, waypoint=BY_ADDRESS)

    verdict = decide(target, WAYPOINT, to="10.0.0.2:80")

    assert reached(verdict) == [("10.0.9.1:15008", "10.0.0.2:80")]
    assert verdict.uses_source


@pytest.mark.spec("dataplane-31")
def test_workload_waypoint_is_skipped_when_a_service_is_called() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("a", "10.0.0.2", serves=SERVES, waypoint=BY_ADDRESS),
        WAYPOINT,
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:8080")]


@pytest.mark.spec("dataplane-32")
@pytest.mark.parametrize(
    ("src", "expected"),
    [
        ("10.0.9.1", ("10.0.0.2:15008", "10.0.0.2:80")),
        ("10.0.9.2", ("10.0.9.1:15008", "10.0.0.2:80")),
    ],
)
def test_waypoint_itself_goes_directly(src: str, expected: tuple[str, str]) -> None:
    target = pod("a", "10.0.0.2", waypoint=BY_ADDRESS)

    verdict = decide(target, WAYPOINT, to="10.0.0.2:80", client=WAYPOINT.workload, src=src)

    assert reached(verdict) == [expected]


@pytest.mark.spec("dataplane-33")
def test_waypoint_of_the_source_is_not_used() -> None:
    client = pod("client", "10.0.0.1", waypoint=BY_ADDRESS).workload

    verdict = decide(pod("a", "10.0.0.2"), WAYPOINT, to="10.0.0.2:80", client=client)

    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:80")]


def test_weighted_waypoints_share_connections() -> None:
    weighted = (
        WeightedWaypoint(gateway("/10.0.9.1"), 1),
        WeightedWaypoint(gateway("default/wp.test", 15008), 3),
        WeightedWaypoint(gateway("/10.0.9.4"), 0),
    )
    members = {"default/wp.test": {15008: 15008}}
    verdict = decide(
        service("web.test", f"/{VIP}", weighted_waypoints=weighted),
        WAYPOINT,
        service("wp.test", ports={15008: 15008}),
        pod("wp2", "10.0.9.2", serves=members, capacity=1),
        pod("wp3", "10.0.9.3", serves=members, capacity=3),
        pod("wp4", "10.0.9.4"),
        to=f"{VIP}:80",
    )

    shares = Counter({str(hop.address.ip): hop.weight for hop in verdict.hops})
    total = shares.total()
    assert {address: round(16 * n / total) for address, n in shares.items()} == {
        "10.0.9.1": 4,
        "10.0.9.2": 3,
        "10.0.9.3": 9,
    }


@pytest.mark.spec("dataplane-27", "state-79")
@pytest.mark.parametrize(("weights", "expected"), [((100, 0), "10.0.9.2"), ((0, 0), "10.0.9.1")])
def test_waypoints_of_weight_0_are_not_used(weights: tuple[int, int], expected: str) -> None:
    weighted = tuple(
        WeightedWaypoint(gateway(f"/10.0.9.{n}"), weight)
        for n, weight in zip((2, 3), weights, strict=False)
    )
    verdict = decide(
        service("web.test", f"/{VIP}", waypoint=BY_ADDRESS, weighted_waypoints=weighted),
        *(pod(f"wp{n}", f"10.0.9.{n}") for n in (1, 2, 3)),
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [(f"{expected}:15008", f"{VIP}:80")]


@pytest.mark.spec("dataplane-34", "state-81")
@pytest.mark.parametrize(
    ("reference", "expected"),
    [("/10.0.9.1", "10.0.9.1:15008"), ("default/wp.test", "[2001:db8::9]:15008")],
)
def test_waypoint_by_address_pins_the_family_and_by_hostname_follows(
    reference: str, expected: str
) -> None:
    verdict = decide(
        service("web.test", "/2001:db8::80", waypoint=gateway(reference)),
        service("wp.test", ports={15008: 15008}),
        pod("wp", "10.0.9.1", "2001:db8::9", serves={"default/wp.test": {}}),
        to="[2001:db8::80]:80",
    )

    assert str(verdict.hops[0].address) == expected


@pytest.mark.spec("dataplane-29", "state-64")
def test_waypoint_with_an_application_tunnel_needs_no_port_on_its_service() -> None:
    tunnel = ApplicationTunnel(TunnelProtocol.PROXY, 15088)
    verdict = decide(
        service("web.test", f"/{VIP}", waypoint=gateway("default/wp.test")),
        service("wp.test", ports={80: 80}),
        pod("wp", "10.0.9.1", serves={"default/wp.test": {}}, application_tunnel=tunnel),
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [("10.0.9.1:15008", f"{VIP}:80")]


def test_verdict_names_its_workload_and_its_baggage() -> None:
    verdict = decide(to="10.0.0.1:80")

    assert verdict.workload == "default/client"
    assert verdict.headers == (("baggage", "k8s.namespace.name=default,k8s..name=client"),)
