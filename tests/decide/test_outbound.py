# SPDX-License-Identifier: Apache-2.0
"""Where captured connections go."""

from __future__ import annotations

import pytest

from tests.decide.build import (
    PASSTHROUGH,
    SERVES,
    VIP,
    WEB,
    decide,
    reached,
    refusal,
)
from tests.state.build import pod, service
from ztunnel_py.decide.verdict import HopProtocol
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.service import (
    IpFamilies,
    Visibility,
)
from ztunnel_py.state.workload import (
    ApplicationTunnel,
    NetworkMode,
    Protocol,
    TunnelProtocol,
    WorkloadInfo,
)

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
        pod(
            "c",
            "10.0.0.4",
            serves={WEB: {81: 9000}},
            application_tunnel=ApplicationTunnel(TunnelProtocol.PROXY, 15088),
        ),
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:9000")]


@pytest.mark.spec("dataplane-22", "state-61")
@pytest.mark.parametrize("ports", [{80: 8080}, {81: 8081}])
def test_port_that_a_service_does_not_have_is_refused(ports: dict[int, int]) -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"), pod("a", "10.0.0.2", serves={WEB: ports}), to=f"{VIP}:81"
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


@pytest.mark.spec("state-72")
@pytest.mark.parametrize("is_service", [False, True])
def test_the_very_address_that_was_called_goes_before_any_restriction(is_service: bool) -> None:
    called = "10.0.0.2"
    vip = f"/{called if is_service else VIP}"

    verdict = decide(
        service("web.test", vip, ip_families=IpFamilies.IPV6),
        pod("a", "2001:db8::2", "10.0.0.2", serves=SERVES),
        to=f"{called}:80",
    )

    port = 8080 if is_service else 80
    assert reached(verdict) == [(f"{called}:15008", f"{called}:{port}")]


@pytest.mark.spec("state-72")
def test_called_address_of_a_pod_is_used_whatever_the_families_of_its_service() -> None:
    verdict = decide(
        service("web.test", "/10.0.0.2", ip_families=IpFamilies.IPV6),
        pod("a", "2001:db8::2", "10.0.0.2", serves=SERVES),
        to="10.0.0.2:80",
    )

    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:8080")]


def test_alternative_names_of_a_service_are_accepted_before_the_endpoints_own() -> None:
    names = ("spiffe://td/ns/x/sa/y", "dns.name")
    verdict = decide(
        service("web.test", f"/{VIP}", subject_alt_names=names),
        pod("a", "10.0.0.2", serves=SERVES),
        to=f"{VIP}:80",
    )

    (hop,) = verdict.hops
    assert hop.sans == (Identity("td", "x", "y"), Identity("cluster.local", "default", "a"))


def test_verdict_names_its_workload_and_its_baggage() -> None:
    verdict = decide(to="10.0.0.1:80")

    assert verdict.workload == "default/client"
    assert verdict.headers == (("baggage", "k8s.namespace.name=default,k8s..name=client"),)
