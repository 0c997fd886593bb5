# SPDX-License-Identifier: Apache-2.0
"""Connections that go through waypoints, and those that must not."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.decide.build import (
    PASSTHROUGH,
    SERVES,
    VIP,
    decide,
    gateway,
    reached,
    refusal,
)
from tests.state.build import pod, service
from ztunnel_py.decide.verdict import HopProtocol
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.service import (
    WeightedWaypoint,
)
from ztunnel_py.state.workload import (
    ApplicationTunnel,
    Protocol,
    TunnelProtocol,
)

if TYPE_CHECKING:
    from ztunnel_py.state.service import (
        LoadBalancer,
    )

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


@pytest.mark.spec("state-77")
def test_waypoint_of_a_pod_is_for_calls_of_the_pod_and_not_of_its_service() -> None:
    mesh = (
        service("web.test", f"/{VIP}"),
        pod("a", "10.0.0.2", serves=SERVES, waypoint=BY_ADDRESS),
        WAYPOINT,
    )

    assert reached(decide(*mesh, to="10.0.0.2:8080")) == [("10.0.9.1:15008", "10.0.0.2:8080")]
    assert reached(decide(*mesh, to=f"{VIP}:80")) == [("10.0.0.2:15008", "10.0.0.2:8080")]


@pytest.mark.spec("state-78")
@pytest.mark.parametrize(
    ("account", "src", "is_traversed"),
    [("wp", "10.0.9.1", False), ("wp", "10.0.9.2", True), ("client", "10.0.9.1", True)],
)
@pytest.mark.parametrize("reference", ["/10.0.9.1", "default/wp.test"])
def test_source_is_the_waypoint_by_identity_and_address(
    account: str, src: str, is_traversed: bool, reference: str
) -> None:
    source = pod("source", src, service_account=account).workload
    verdict = decide(
        pod("a", "10.0.0.2", waypoint=gateway(reference)),
        service("wp.test", ports={15008: 15008}),
        pod("wp", "10.0.9.1", service_account="wp", serves={"default/wp.test": {}}),
        to="10.0.0.2:80",
        client=source,
        src=src,
    )

    hop = "10.0.9.1" if is_traversed else "10.0.0.2"
    assert reached(verdict) == [(f"{hop}:15008", "10.0.0.2:80")]


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


def test_weights_that_are_shared_fit_into_32_bits() -> None:
    verdict = decide(
        pod("server", "10.0.0.2", waypoint=BY_ADDRESS),
        pod("wp1", "10.0.9.1"),
        to="10.0.0.2:80",
    )

    (hop,) = verdict.hops
    assert hop.weight == 2**32 - 1


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
