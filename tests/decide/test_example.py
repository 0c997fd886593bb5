# SPDX-License-Identifier: Apache-2.0
"""The example of the local state file, decided on both of its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.state.build import ip
from tests.support.example import mesh
from ztunnel_py.decide import inbound, outbound
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from ztunnel_py.state.workload import Workload

MESH = mesh(cart="10.40.1.10", prices="10.40.2.20")
CART = Identity("cluster.local", "shop", "cart")
OTHER = Identity("cluster.local", "shop", "other")
CART_IP, PRICES_IP = ip("10.40.1.10"), ip("10.40.2.20")


def node(name: str, workload: str, account: str) -> tuple[Store, Workload]:
    store = Store(name)
    store.apply(local.parse(MESH, "mesh.yaml").updates)
    found = store.local_workload(WorkloadInfo(workload, "shop", account))
    assert found is not None
    return store, found


def test_client_is_sent_through_a_tunnel_to_the_server() -> None:
    store, cart = node("node-a", "cart-0", "cart")
    key = OutboundKey("w", CART_IP, SockAddr.parse("10.96.0.50:80"))

    verdict = outbound.decide(store, Settings(), key, cart)

    (hop,) = verdict.hops
    assert (str(hop.address), hop.authority) == ("10.40.2.20:15008", "10.40.2.20:8080")
    assert verdict.forwarded_host == "prices.shop.svc.cluster.local"


@pytest.mark.parametrize(
    ("identity", "authority", "reason"),
    [
        (CART, "10.40.2.20:8080", Reason.OK),
        (CART, "10.40.2.20:8081", Reason.POLICY_DENIED),
        (OTHER, "10.40.2.20:8080", Reason.POLICY_DENIED),
    ],
)
def test_server_admits_the_client_to_its_port_only(
    identity: Identity, authority: str, reason: Reason
) -> None:
    store, prices = node("node-b", "prices-0", "prices")
    key = InboundKey("w", PRICES_IP, CART_IP, identity, authority)

    verdict = inbound.decide(store, Rulebook(store), Settings(), key, prices)

    assert verdict.reason is reason


def test_server_refuses_plaintext() -> None:
    store, prices = node("node-b", "prices-0", "prices")
    key = PassthroughKey("w", CART_IP, SockAddr.parse("10.40.2.20:8080"))

    verdict = inbound.decide_passthrough(store, Rulebook(store), Settings(), key, prices)

    assert (verdict.action, verdict.detail) == (
        Action.DENY,
        "allow policies exist, but none allowed",
    )
