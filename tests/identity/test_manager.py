# SPDX-License-Identifier: Apache-2.0
"""One certificate per identity, fetched once and renewed in time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.certificates import WorkloadCertificate
from ztunnel_py.identity.manager import CertificateState, SecretManager
from ztunnel_py.identity.spiffe import Identity

CART = Identity("cluster.local", "shop", "cart")
LIFE = 100.0


class ScriptedCa:
    """Issues numbered certificates, after `gate` opens, unless told to fail."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.issued = 0
        self.failure = ""
        self.gate = asyncio.Event()
        self.gate.set()

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        self.issued += 1
        number = b"%d" % self.issued
        await self.gate.wait()
        if self.failure:
            raise IdentityError(self.failure)
        return WorkloadCertificate(identity, number, b"", b"", self.now, self.now + LIFE)


@pytest.fixture
def ca() -> ScriptedCa:
    return ScriptedCa()


@pytest.fixture
def manager(ca: ScriptedCa) -> SecretManager:
    return SecretManager(ca, lambda: ca.now)


async def settled() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_concurrent_askers_share_one_fetch(ca: ScriptedCa, manager: SecretManager) -> None:
    ca.gate.clear()
    askers = [asyncio.ensure_future(manager.get(CART)) for _ in range(10)]
    await settled()
    assert manager.statuses()[0].state is CertificateState.INITIALIZING

    ca.gate.set()
    certificates = await asyncio.gather(*askers)

    assert ca.issued == 1
    assert all(certificate is certificates[0] for certificate in certificates)


async def test_asker_that_gives_up_does_not_end_the_fetch_of_others(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    first, second = (asyncio.ensure_future(manager.get(CART)) for _ in range(2))
    await settled()

    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    ca.gate.set()

    assert (await second).identity == CART


@pytest.mark.parametrize(("age", "number"), [(49.0, b"1"), (50.0, b"2")])
async def test_certificate_is_renewed_at_half_its_life(
    age: float, number: bytes, ca: ScriptedCa, manager: SecretManager
) -> None:
    await manager.get(CART)

    ca.now += age

    assert (await manager.get(CART)).chain_pem == number


async def test_old_certificate_serves_while_a_new_one_is_fetched(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    old = await manager.get(CART)
    ca.now += 60
    ca.gate.clear()
    leader = asyncio.ensure_future(manager.get(CART))
    await settled()

    during = await manager.get(CART)
    ca.gate.set()

    assert during is old
    assert (await leader).chain_pem == b"2"


async def test_failure_is_remembered_until_its_retry_is_due(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.failure = "no"
    with pytest.raises(IdentityError, match="no"):
        await manager.get(CART)
    with pytest.raises(IdentityError):
        await manager.get(CART)
    (status,) = manager.statuses()
    assert (ca.issued, status.state, status.error) == (1, CertificateState.UNAVAILABLE, "no")

    ca.now += 1
    ca.failure = ""

    assert (await manager.get(CART)).chain_pem == b"2"
    assert manager.statuses()[0].state is CertificateState.AVAILABLE


async def test_retries_are_spaced_out(ca: ScriptedCa, manager: SecretManager) -> None:
    ca.failure = "no"
    asked_at = []
    for second in range(16):
        before = ca.issued
        with pytest.raises(IdentityError):
            await manager.get(CART)
        if ca.issued > before:
            asked_at.append(second)
        ca.now += 1

    assert asked_at == [0, 1, 3, 7, 15]


async def test_failed_renewal_keeps_the_certificate_until_it_expires(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    old = await manager.get(CART)
    ca.failure = "no"

    ca.now += 99
    assert await manager.get(CART) is old

    ca.now += 1
    with pytest.raises(IdentityError, match="no"):
        await manager.get(CART)


async def test_forgotten_identity_is_fetched_anew(ca: ScriptedCa, manager: SecretManager) -> None:
    await manager.get(CART)

    manager.forget(CART)

    assert manager.statuses() == []
    assert (await manager.get(CART)).chain_pem == b"2"
