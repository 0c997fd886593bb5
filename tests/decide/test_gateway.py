# SPDX-License-Identifier: Apache-2.0
"""Connections to other networks go through gateways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.decide.build import (
    CLIENT,
    SERVES,
    VIP,
    decide,
    gateway,
    reached,
    refusal,
)
from tests.state.build import pod, service
from ztunnel_py.decide import outbound
from ztunnel_py.decide.key import RemoteKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action, HopProtocol
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.service import (
    BalanceMode,
    LoadBalancer,
    Scope,
)
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import (
    Health,
)

if TYPE_CHECKING:
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Update


FAR: dict[str, Any] = {"network": "far", "serves": SERVES}
NEAR_GATEWAY = gateway("/10.9.9.9")


def crossed(verdict: Verdict) -> list[tuple[str, str, str]]:
    """Next hop and both authorities of each hop, all through gateways."""
    assert verdict.action is Action.FORWARD, verdict
    assert {hop.protocol for hop in verdict.hops} == {HopProtocol.DOUBLE_HBONE}
    return sorted((str(hop.address), hop.authority, hop.inner_authority) for hop in verdict.hops)


@pytest.mark.spec("dataplane-40", "state-74")
def test_endpoint_on_another_network_is_reached_through_its_gateway() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}", subject_alt_names=("spiffe://td/ns/far/sa/web",)),
        pod("split", network_gateway=NEAR_GATEWAY, **FAR),
        pod("gw", "10.9.9.9", service_account="gateway"),
        to=f"{VIP}:80",
    )

    assert crossed(verdict) == [("10.9.9.9:15008", "web.test:80", "web.test:80")]
    (hop,) = verdict.hops
    assert [identity.service_account for identity in hop.sans] == ["gateway"]
    assert [str(identity) for identity in hop.inner_sans] == ["spiffe://td/ns/far/sa/web"]
    assert ("x-forwarded-network", "") in verdict.headers
    assert hop.labels.destination_service == "web.test"


@pytest.mark.spec("dataplane-38", "state-74")
def test_failover_crosses_when_nobody_near_is_healthy() -> None:
    balancer = LoadBalancer((Scope.NETWORK,), BalanceMode.FAILOVER)
    near = pod("near", "10.0.0.2", serves=SERVES)
    mesh = (
        service("web.test", f"/{VIP}", load_balancer=balancer),
        pod("split", network_gateway=NEAR_GATEWAY, **FAR),
        pod("gw", "10.9.9.9"),
    )
    ill = pod("near", "10.0.0.2", serves=SERVES, health=Health.UNHEALTHY)

    assert reached(decide(*mesh, near, to=f"{VIP}:80")) == [("10.0.0.2:15008", "10.0.0.2:8080")]
    assert crossed(decide(*mesh, ill, to=f"{VIP}:80")) == [
        ("10.9.9.9:15008", "web.test:80", "web.test:80")
    ]


@pytest.mark.spec("state-82")
def test_gateway_by_hostname_is_reached_at_its_target_port() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("split", network_gateway=gateway("default/gw.test", 15009), **FAR),
        service("gw.test", "/10.9.9.1", ports={15009: 15008}),
        pod("gw", "10.9.9.9", "2001:db8::9", serves={"default/gw.test": {}}),
        to=f"{VIP}:80",
    )

    assert crossed(verdict) == [("10.9.9.9:15008", "web.test:80", "web.test:80")]


@pytest.mark.spec("state-83")
def test_waypoint_on_another_network_is_reached_through_its_gateway() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}", waypoint=gateway("default/wp.test")),
        service("wp.test", ports={15008: 0}, subject_alt_names=("spiffe://td/ns/far/sa/wp",)),
        pod(
            "wp",
            network="far",
            serves={"default/wp.test": {15008: 15008}},
            network_gateway=NEAR_GATEWAY,
        ),
        pod("gw", "10.9.9.9"),
        to=f"{VIP}:80",
    )

    assert crossed(verdict) == [("10.9.9.9:15008", "web.test:80", "web.test:80")]
    assert [str(one) for one in verdict.hops[0].inner_sans] == ["spiffe://td/ns/far/sa/wp"]


def test_endpoints_of_this_network_ignore_their_gateway() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("a", "10.0.0.2", serves=SERVES, network_gateway=NEAR_GATEWAY),
        pod("gw", "10.9.9.9"),
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [("10.0.0.2:15008", "10.0.0.2:8080")]
    assert all(name != "x-forwarded-network" for name, _ in verdict.headers)


@pytest.mark.spec("dataplane-39", "state-75")
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"network_gateway": None},
            "no valid routing destination for workload: "
            "Workload{a with uid demo//Pod/default/a (HBONE)}",
        ),
        (
            {"network_gateway": gateway("far/10.9.9.8")},
            "unknown network gateway: network gateway far/10.9.9.8 not found",
        ),
        (
            {"network_gateway": gateway("default/none.test")},
            "unknown network gateway: network gateway none.test not found",
        ),
    ],
)
def test_endpoint_on_another_network_is_never_dialled(fields: dict[str, Any], error: str) -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("a", "10.0.0.2", **FAR, **fields),
        to=f"{VIP}:80",
    )

    assert refusal(verdict) == error


def test_gateway_without_a_usable_address_is_a_denial() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("split", network_gateway=gateway("default/gw.test"), **FAR),
        service("gw.test", ports={15008: 15008}),
        pod("gw", network="far", network_gateway=NEAR_GATEWAY, serves={"default/gw.test": {}}),
        to=f"{VIP}:80",
    )

    assert verdict.reason is Reason.NO_ROUTE


@pytest.mark.spec("state-65")
def test_endpoint_without_address_on_the_own_network_is_never_chosen() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("a", serves=SERVES, network_gateway=gateway("/10.9.9.9")),
        to=f"{VIP}:80",
    )

    assert verdict.reason is Reason.NO_HEALTHY_UPSTREAM


def test_endpoints_that_cannot_be_reached_leave_the_others() -> None:
    verdict = decide(
        service("web.test", f"/{VIP}"),
        pod("a", "10.0.0.2", network="far", serves=SERVES),
        pod("b", "10.0.0.3", serves=SERVES),
        to=f"{VIP}:80",
    )

    assert reached(verdict) == [("10.0.0.3:15008", "10.0.0.3:8080")]


# --- who has answered behind the gateway

SAID = ("k8s.deployment.name=api,k8s.namespace.name=there,service.name=web", "service.version=v2")
PROVED = Identity("td", "far", "web")


def remote(*updates: Update, baggage: tuple[str, ...] | None = SAID) -> Verdict:
    store = Store()
    store.apply([CLIENT, *updates])
    key = RemoteKey("w", SockAddr.parse(f"{VIP}:80"), PROVED, baggage)
    return outbound.decide_remote(store, Settings(), key, CLIENT.workload)


@pytest.mark.spec("dataplane-43")
def test_labels_are_what_the_server_says_and_the_identity_it_proved() -> None:
    (hop,) = remote(service("web.test", f"/{VIP}")).hops

    labels = hop.labels
    assert labels.destination_workload == labels.destination_app == "api"
    assert labels.destination_canonical_service == "web"
    assert labels.destination_version == labels.destination_canonical_revision == "v2"
    assert labels.destination_workload_namespace == "there"
    assert labels.destination_principal == str(PROVED)
    assert (labels.destination_service, labels.source_workload) == ("web.test", "client")
    assert labels.connection_security_policy == "mutual_tls"
    assert (hop.log.dst_workload, hop.log.dst_identity) == ("api", str(PROVED))


def test_server_that_says_nothing_is_known_by_its_identity_alone() -> None:
    (hop,) = remote(service("web.test", f"/{VIP}"), baggage=()).hops

    assert hop.labels.destination_workload == ""
    assert hop.labels.destination_principal == str(PROVED)


def test_baggage_that_cannot_be_read_and_a_service_that_is_gone_say_nothing_new() -> None:
    assert remote(service("web.test", f"/{VIP}"), baggage=None).action is Action.DENY
    assert remote().action is Action.DENY
