# SPDX-License-Identifier: Apache-2.0
"""Certificates from a SPIRE agent, by both of its APIs, through the manager that keeps them."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.authority import Authority
from tests.support.clock import FakeClock
from tests.support.rpc import RpcServer
from tests.support.spire import Agent, der, selectors_of
from tests.support.wait import DEADLINE_S, settle, until
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.delegated import Delegated
from ztunnel_py.identity.manager import CertificateState, SecretManager
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.identity.workload_api import WorkloadApi
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from ztunnel_py.identity.certificates import WorkloadCertificate

CART, PRICES = (Identity("example.org", "shop", name) for name in ("cart", "prices"))

Client = type[WorkloadApi] | type[Delegated]
both = pytest.mark.parametrize("client", [WorkloadApi, Delegated])


class Stage:
    """An agent on a socket, a source that asks it, a manager that keeps what it gives."""

    def __init__(self, client: Client, socket: Path) -> None:
        self.agent, self.root = Agent(), Authority("spire")
        self.clock, self.tasks = FakeClock(), Tasks()
        self.socket = socket
        self.server = RpcServer()
        self.source = client(socket, self.clock, self.tasks)
        self.manager = SecretManager(self.source, self.clock, self.tasks)

    async def serve(self) -> None:
        """The agent runs."""
        self.server = RpcServer()
        self.agent.add_to(self.server)
        await self.server.start_unix(self.socket)

    async def vanish(self) -> None:
        """The agent ends."""
        await self.server.stop()

    async def get(self, identity: Identity = CART) -> WorkloadCertificate:
        async with asyncio.timeout(DEADLINE_S):
            return await self.manager.get(identity)

    async def refusal(self, identity: Identity = CART) -> str:
        with pytest.raises(IdentityError) as failed:
            await self.get(identity)
        return str(failed.value)

    def shown(self) -> bytes:
        """The chain that is in use."""
        (status,) = self.manager.statuses()
        return status.certificate.chain_pem if status.certificate else b""


@asynccontextmanager
async def staged(
    client: Client,
    tmp_path: Path,
    *identities: Identity,
    refuses: tuple[grpc.StatusCode, str] | None = None,
) -> AsyncIterator[Stage]:
    stage = Stage(client, tmp_path / "agent.sock")
    stage.agent.refuses = refuses
    stage.agent.change(*(stage.root.issue(identity) for identity in identities))
    await stage.serve()
    stage.source.start(stage.manager.renew)
    try:
        yield stage
    finally:
        stage.manager.stop()
        await stage.tasks.stop()
        stage.source.stop()
        await stage.vanish()


@both
async def test_certificate_of_the_agent_is_used(client: Client, tmp_path: Path) -> None:
    async with staged(client, tmp_path, PRICES, CART) as stage:
        certificate = await stage.get()

        assert certificate.identity == CART
        assert certificate.chain_pem == stage.agent.certificates[1].chain_pem
        assert certificate.roots_pem == stage.root.pem
        assert certificate.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")


@both
async def test_intermediates_and_several_roots_are_kept(client: Client, tmp_path: Path) -> None:
    async with staged(client, tmp_path) as stage:
        issued = stage.root.intermediate("below").issue(CART)
        roots = stage.root.pem + Authority("next").pem
        stage.agent.change(issued, bundles={CART.trust_domain: der(roots)})

        certificate = await stage.get()

        assert (certificate.chain_pem, certificate.roots_pem) == (issued.chain_pem, roots)


@both
async def test_what_the_agent_pushes_is_used_at_once(client: Client, tmp_path: Path) -> None:
    async with staged(client, tmp_path, CART) as stage:
        old = await stage.get()

        stage.agent.change(stage.root.issue(CART))
        await until(lambda: stage.shown() != old.chain_pem, "the next certificate")

        assert (await stage.get()).chain_pem == stage.agent.certificates[0].chain_pem


@both
async def test_new_roots_are_used_at_once(client: Client, tmp_path: Path) -> None:
    async with staged(client, tmp_path, CART) as stage:
        old = await stage.get()
        roots = stage.root.pem + Authority("next").pem

        stage.agent.change(*stage.agent.certificates, bundles={CART.trust_domain: der(roots)})
        await until(lambda: stage.manager.statuses()[0].certificate != old, "the certificate anew")

        assert (await stage.get()).roots_pem == roots


@both
async def test_agent_that_does_not_know_a_workload_is_told_with_whom_it_knows(
    client: Client, tmp_path: Path
) -> None:
    async with staged(client, tmp_path, PRICES) as stage:
        error = await stage.refusal()

    known = PRICES if client is WorkloadApi else "none"
    assert error.endswith(f"agent.sock gives no certificate for {CART}, but: {known}")


@both
async def test_refusal_of_the_agent_is_told(client: Client, tmp_path: Path) -> None:
    refuses = grpc.StatusCode.PERMISSION_DENIED, "no identity issued"
    async with staged(client, tmp_path, CART, refuses=refuses) as stage:
        assert "PERMISSION_DENIED: no identity issued" in await stage.refusal()


@both
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda one, root: replace(one, key_pem=root.issue(CART).key_pem), "private key is not"),
        (lambda one, root: replace(one, chain_pem=b""), "no certificate"),
        (lambda one, root: replace(one, roots_pem=b""), "no root certificate"),
    ],
    ids=["key", "chain", "roots"],
)
async def test_what_is_no_certificate_is_refused_and_the_present_one_kept(
    damage: Callable[[WorkloadCertificate, Authority], WorkloadCertificate],
    error: str,
    client: Client,
    tmp_path: Path,
) -> None:
    async with staged(client, tmp_path, CART) as stage:
        good = await stage.get()

        stage.agent.change(damage(stage.root.issue(CART), stage.root))
        await until(lambda: error in stage.manager.statuses()[0].error, "the error")

        assert await stage.get() is good


@both
async def test_agent_that_is_gone_for_a_while_is_found_again(
    client: Client, tmp_path: Path
) -> None:
    async with staged(client, tmp_path, CART) as stage:
        good = await stage.get()
        await stage.vanish()
        assert await stage.get() is good
        assert "broken" not in stage.manager.statuses()[0].error

        stage.agent.change(stage.root.issue(CART))
        await stage.serve()

        def is_new() -> bool:
            stage.clock.advance(1)
            return stage.shown() != good.chain_pem

        await until(is_new, "the certificate of the agent that is back")


@both
async def test_agent_that_is_not_there_is_an_error_at_once(client: Client, tmp_path: Path) -> None:
    async with staged(client, tmp_path, CART) as stage:
        await stage.vanish()
        await until(lambda: stage.agent.open_streams == 0, "the end of streams")
        await settle()

        error = await stage.refusal()

        assert str(stage.socket) in error
        assert stage.manager.statuses()[0].state is CertificateState.UNAVAILABLE


async def test_whatever_goes_wrong_the_agent_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(WorkloadApi, tmp_path, CART) as stage:
        await stage.get()
        with monkeypatch.context() as patched:
            patched.setattr(stage.manager, "renew", lambda _: 1 / 0)
            patched.setattr(stage.source, "_renew", stage.manager.renew)
            stage.agent.change(stage.root.issue(CART))
            await until(lambda: stage.agent.open_streams == 0, "the end of the stream")
        stage.agent.change(stage.root.issue(CART))

        def is_new() -> bool:
            stage.clock.advance(1)
            return stage.shown() == stage.agent.certificates[0].chain_pem

        await until(is_new, "the next certificate")


async def test_workload_is_named_by_namespace_and_account(tmp_path: Path) -> None:
    async with staged(Delegated, tmp_path, CART, PRICES) as stage:
        await stage.get(CART)
        await stage.get(PRICES)

        assert stage.agent.asked == [selectors_of(CART), selectors_of(PRICES)]


async def test_forgotten_identity_is_unsubscribed_at_its_next_update(tmp_path: Path) -> None:
    async with staged(Delegated, tmp_path, CART) as stage:
        await stage.get()
        assert stage.agent.open_streams == 2

        stage.manager.forget(CART)
        stage.agent.change(stage.root.issue(CART))

        await until(lambda: stage.agent.open_streams == 1, "only the stream of roots")
        stage.agent.change(stage.root.issue(CART))
        assert (await stage.get()).chain_pem == stage.agent.certificates[0].chain_pem


async def test_roots_alone_may_change(tmp_path: Path) -> None:
    async with staged(Delegated, tmp_path, CART) as stage:
        old = await stage.get()
        await settle()  # what came first is fetched once more
        roots = stage.root.pem + Authority("next").pem

        stage.agent.change_bundles({CART.trust_domain: der(roots)})
        await until(lambda: stage.manager.statuses()[0].certificate != old, "the certificate anew")

        assert (await stage.get()).roots_pem == roots


async def test_certificate_of_another_workload_is_not_taken(tmp_path: Path) -> None:
    async with staged(Delegated, tmp_path, PRICES) as stage:
        stage.agent.is_confused = True

        assert f"gives no certificate for {CART}, but: {PRICES}" in await stage.refusal()


async def test_lost_agent_is_complained_about_once_and_sought_ever_less_often(
    tmp_path: Path, logged: Callable[[], str]
) -> None:
    async with staged(WorkloadApi, tmp_path, CART) as stage:
        await stage.get()
        await stage.vanish()
        for _ in range(40):
            stage.clock.advance(1)
            await settle(2)
        said = [line for line in logged().splitlines() if "stream of the agent" in line]
        assert sum("cannot connect to unix://" in line for line in said) == 1

        await stage.serve()

        def is_back() -> bool:
            stage.clock.advance(1)
            return stage.agent.open_streams == 1

        await until(is_back, "a stream")
        await stage.vanish()
        await until(lambda: stage.agent.open_streams == 0, "its end")
        await settle()
        await stage.serve()
        stage.clock.advance(1.3)

        await until(lambda: stage.agent.open_streams == 1, "a stream after the first delay")


async def test_another_trust_domains_roots_are_not_trusted(tmp_path: Path) -> None:
    async with staged(Delegated, tmp_path, CART) as stage:
        stage.agent.change(
            *stage.agent.certificates, bundles={"elsewhere.org": der(stage.root.pem)}
        )

        assert "no root certificate" in await stage.refusal()


@pytest.mark.parametrize("mode", ["dangling", "plain"])
async def test_socket_that_is_none_is_told(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    if mode == "plain":
        os.close(os.open(path, os.O_CREAT))
    clock, tasks = FakeClock(), Tasks()
    source = WorkloadApi(path, clock, tasks)
    source.start(lambda _: True)

    with pytest.raises(IdentityError, match=f"cannot connect to unix://{path}"):
        await source.issue(CART)

    await tasks.stop()
    source.stop()
