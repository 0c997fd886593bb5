# SPDX-License-Identifier: Apache-2.0
"""Which endpoints of a service are used."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decide.build import SERVES, VIP, WEB, gateway
from tests.state.build import ip, pod, service
from ztunnel_py.decide import outbound, upstream
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.key import OutboundKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.service import (
    BalanceMode,
    LoadBalancer,
    Scope,
)
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import Locality, NamespacedHostname


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


FAR_AWAY = {"network": "far", "network_gateway": gateway("/10.9.9.9")}
RANKS: list[dict[str, Any]] = [
    ZONE,
    REGION,
    NOWHERE,
    {**ZONE, **FAR_AWAY},
    {**REGION, **FAR_AWAY},
    FAR_AWAY,
]
"""From rank 5 to rank 0, for a client that prefers NETWORK, then REGION, then ZONE."""


def chosen(*places: dict[str, Any]) -> list[str]:
    """As `ranked`, before it is known how to get there."""
    client = pod("client", "10.0.0.1", locality=Locality("eu", "eu-1")).workload
    store = Store()
    endpoints = (pod(str(i), f"10.0.1.{i}", serves=SERVES, **p) for i, p in enumerate(places))
    store.apply([service("web.test", load_balancer=NETWORK_FIRST), *endpoints])
    found = store.service(NamespacedHostname.parse(WEB))
    assert found is not None
    upstreams = upstream.of_service(store, client, found, 80, Mode.STANDARD)
    return [one.workload.name for one in upstreams]


@pytest.mark.spec("state-66")
@pytest.mark.parametrize("best", range(6))
def test_only_the_best_of_the_six_ranks_is_used(best: int) -> None:
    places = [*RANKS[best:], RANKS[best]]

    assert chosen(*reversed(places)) == ["0", str(len(places) - 1)]


@pytest.mark.spec("state-67")
def test_localities_of_other_networks_rank_among_themselves() -> None:
    both, region, nothing = RANKS[3:]

    assert chosen(nothing, region, both) == ["2"]
    assert chosen(nothing, region) == ["1"]
    assert chosen(nothing) == ["0"]
