# SPDX-License-Identifier: Apache-2.0
"""Which endpoints of a service are used."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decide.build import (
    SERVES,
    VIP,
)
from tests.state.build import ip, pod, service
from ztunnel_py.decide import outbound
from ztunnel_py.decide.key import OutboundKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.service import (
    BalanceMode,
    LoadBalancer,
    Scope,
)
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import (
    Locality,
)


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
