# SPDX-License-Identifier: Apache-2.0
"""The mesh's authority misbehaves, or is gone: what is known serves on, and all recovers by itself.

A real authority over TLS, the manager, and an engine that serves HBONE with what they give.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.istio_ca import TOKEN, IstioCa
from tests.support.node import CART, LIFE, PRICES
from tests.support.wait import settle, until
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.manager import CertificateState, SecretManager
from ztunnel_py.state.store import WorkloadRemoval

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.node import Node, Served


GARBAGE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def nothing(node: Node) -> None:
    node.ca.chain = lambda leaf, above, roots: []


def another_name(node: Node) -> None:
    node.ca.name = lambda asked: str(PRICES)


def expired(node: Node) -> None:
    node.ca.lives_s = -7200, -3600


def garbage(node: Node) -> None:
    node.ca.chain = lambda leaf, above, roots: [GARBAGE, roots]


def silence(node: Node) -> None:
    node.ca.gate.clear()


def refusal(node: Node) -> None:
    node.ca.fails_with = grpc.StatusCode.PERMISSION_DENIED, "not you"


def empty_token(node: Node) -> None:
    node.token.write_text("")


def no_token(node: Node) -> None:
    node.token.unlink()


def mend(node: Node) -> None:
    """Undoes all of these."""
    fresh = IstioCa(node.root)
    node.ca.chain, node.ca.name, node.ca.lives_s = fresh.chain, fresh.name, None
    node.ca.fails_with = None
    node.ca.gate.set()
    node.token.write_text(TOKEN)


FAULTS = {
    nothing: f"chain returned from CA is empty for: {CART}",
    another_name: f"did not find expected SAN: {CART}",
    expired: "the authority's certificate has already expired",
    garbage: "failed to create CSR: certificate: ",
    silence: "no answer from https://localhost",
    refusal: "(The caller does not have permission to execute the specified operation): not you",
    empty_token: "token file exists, but was empty",
    no_token: "cannot read the token file",
}
every_fault = pytest.mark.parametrize(
    ("fault", "error"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS]
)


@every_fault
async def test_first_fetch_fails_with_a_reason_and_later_succeeds_by_itself(
    fault: Callable[[Node], None], error: str, node: Node
) -> None:
    fault(node)
    with pytest.raises(IdentityError) as failed:
        await node.manager.get(CART)
    assert error in str(failed.value)
    assert node.status().state is CertificateState.UNAVAILABLE

    mend(node)
    await node.recovered(b"")

    assert (await node.manager.get(CART)).identity == CART
    assert node.status().error == ""


@pytest.mark.spec("ops-11")
async def test_empty_chain_is_shown_as_the_reason(node: Node) -> None:
    nothing(node)

    with pytest.raises(IdentityError):
        await node.manager.get(CART)

    status = node.status()
    assert status.state is CertificateState.UNAVAILABLE
    assert status.error == f"chain returned from CA is empty for: {CART}"


@every_fault
async def test_failed_renewal_keeps_the_certificate_is_counted_and_logged_once(
    fault: Callable[[Node], None], error: str, node: Node, logged: Callable[[], str]
) -> None:
    good = await node.manager.get(CART)
    fault(node)

    await node.tried(LIFE / 2)
    for _ in range(3):
        await node.tried(20)

    assert await node.manager.get(CART) is good
    assert error in node.status().error
    assert node.status().n_failures >= 4
    assert logged().count("certificate renewal failed; the present one stays in use") == 1
    mend(node)
    await node.recovered(good.chain_pem)
    assert logged().count("certificate fetched after failures") == 1


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
async def test_node_whose_clock_is_off_by_an_hour_gets_its_certificate(
    ahead_s: float, node: Node
) -> None:
    now = node.manager.now()
    manager = SecretManager(node.istiod, node.clock, node.tasks, lambda: now + ahead_s)

    certificate = await manager.get(CART)
    manager.stop()

    assert certificate.not_before == pytest.approx(now - 120, abs=10)


async def test_node_whose_clock_is_ahead_by_more_than_a_life_is_told_to_look_at_it(
    node: Node,
) -> None:
    now = node.manager.now()
    manager = SecretManager(node.istiod, node.clock, node.tasks, lambda: now + LIFE + 3600)

    with pytest.raises(IdentityError, match="does this node's clock agree with the authority's"):
        await manager.get(CART)
    manager.stop()


# --- traffic meanwhile


@pytest.mark.spec("ops-32")
async def test_pod_that_the_mesh_does_not_know_is_refused_after_five_seconds(
    served: Served, node: Node
) -> None:
    served.store.apply([WorkloadRemoval("c//Pod/shop/cart-0")])
    listeners = served.store._listeners
    before = len(listeners)
    dialling = asyncio.ensure_future(served.tunnel())
    await until(lambda: len(listeners) > before, "a question that waits for the workload")

    node.clock.advance(4.9)
    await settle()
    assert not dialling.done()
    node.clock.advance(0.2)

    with pytest.raises(ConnectionError):
        await dialling


async def test_authority_that_is_gone_for_a_while_is_not_missed(served: Served, node: Node) -> None:
    app = await served.net.app()
    early = await served.tunnel()
    assert await served.call(early, app.address.port) == 200
    old, port = node.chain(), node.server.port

    await node.server.stop()
    assert await served.call(early, app.address.port) == 200
    assert await served.call(await served.tunnel(), app.address.port) == 200
    await node.tried(LIFE / 2)
    assert await served.call(await served.tunnel(), app.address.port) == 200

    await node.serve(port)
    await node.recovered(old)
    assert await served.call(await served.tunnel(), app.address.port) == 200
