# SPDX-License-Identifier: Apache-2.0
"""The h2 library with all its checks on, as client of our inbound and server of our outbound."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from tests.foreign.strict import AUTHORITY, Strict
from tests.support.apps import echo
from tests.support.plane import SERVER, forward, through
from tests.support.tls import TlsStream, tls_context
from tests.support.wait import DEADLINE_S, until
from ztunnel_py.dataplane.abc import Role
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.net import Net
    from tests.support.plane import Plane

LARGEST = 3 << 20
STREAMS = 8


@pytest.fixture
async def strict(server: Plane, net: Net) -> AsyncIterator[Strict]:
    """A client of our inbound side, behind which an application echoes."""
    app = await net.app(echo)
    server.decide = lambda _: forward(app.address)
    strict = await Strict.dial(server.port(Role.INBOUND), net)
    yield strict
    await strict.close()


@pytest.fixture
async def tunnels(client: Plane, net: Net) -> AsyncIterator[list[Strict]]:
    """Tunnels of a server that echoes, to which our outbound side sends everything."""
    found: list[Strict] = []
    context = tls_context(net.certify(SERVER), is_server=True)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = TlsStream(reader, writer, context)
        await tls.shake_hands()
        found.append(Strict(tls, is_client=False))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    to = SockAddr.of(listener.sockets[0].getsockname())
    client.decide = lambda _: through(to, AUTHORITY)
    yield found
    listener.close()
    for one in found:
        await one.close()


def bodies(seed: int) -> list[bytes]:
    """Bodies of random lengths, from none to more than most windows."""
    source = random.Random(seed)
    return [
        source.randbytes(source.choice((0, 1, 16384, 16385, source.randrange(LARGEST))))
        for _ in range(STREAMS)
    ]


@pytest.mark.parametrize("seed", range(4))
async def test_strict_client_gets_back_what_it_sent(strict: Strict, seed: int) -> None:
    sent = {strict.connect(): body for body in bodies(seed)}
    await until(lambda: len(strict.statuses) == STREAMS, "every response")

    for stream, body in sent.items():
        strict.send(stream, body, end=True)
    await until(lambda: strict.ended == set(sent) or strict.error is not None, "every end")

    assert strict.error is None
    assert set(strict.statuses.values()) == {"200"}
    assert {stream: bytes(strict.bodies.get(stream, b"")) for stream in sent} == sent


@pytest.mark.parametrize("seed", range(4))
async def test_strict_server_sends_back_what_users_sent(
    tunnels: list[Strict], client: Plane, net: Net, seed: int
) -> None:
    sent = bodies(seed)
    users = [await net.user(client) for _ in sent]

    for user, body in zip(users, sent, strict=True):
        user.send(body)
        user.end()
    async with asyncio.timeout(DEADLINE_S):
        heard = await asyncio.gather(*(user.read_all() for user in users))

    assert [one.error for one in tunnels] == [None]
    assert heard == sent


async def test_strict_client_outlives_refusals(strict: Strict, server: Plane) -> None:
    taking = server.decide
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)
    refused = strict.connect()
    await until(lambda: refused in strict.ended, "the refusal")

    server.decide = taking
    taken = strict.connect()
    await until(lambda: taken in strict.statuses, "a response")

    assert strict.statuses == {refused: "503", taken: "200"}
    assert strict.error is None
