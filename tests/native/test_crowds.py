# SPDX-License-Identifier: Apache-2.0
"""Very many at once: half-open handshakes, stalled readers beside a fast one."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.frames import INITIAL_WINDOW
from tests.support.plane import SERVER, forward, inbound_key, through
from tests.support.wait import until
from ztunnel_py.dataplane.abc import RecordKind, Role
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.net import Net
    from tests.support.plane import Plane, Planes

HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
WAVE = 100  # what a listener's queue takes
LIMIT = 1024
WINDOW = 4 << 20
FAST = 64 << 20
STALLED = 16


@pytest.fixture
def crowd() -> Iterator[list[socket.socket]]:
    """Sockets to be closed."""
    sockets: list[socket.socket] = []
    yield sockets
    for sock in sockets:
        sock.close()


def as_many_as_descriptors_allow(most: int) -> int:
    """Both ends of those that are kept are in this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(2000, min(most, soft - 2 * LIMIT - 1000))


async def test_half_open_handshakes_in_thousands_are_bounded_and_keep_nobody_out(
    planes: Planes, net: Net, crowd: list[socket.socket]
) -> None:
    plane = await planes(SERVER, handshakes_at_once=LIMIT)
    app = await net.app()
    plane.decide = lambda _: forward(app.address)
    running = await net.tunnel(plane, source="127.0.0.9")
    stream = running.connect()
    served = await app.accept()
    count = as_many_as_descriptors_allow(10_000)
    loop = asyncio.get_running_loop()
    host, port = plane.port(Role.INBOUND)

    async def arrive() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        crowd.append(sock)
        await loop.sock_connect(sock, (str(host), port))
        await loop.sock_sendall(sock, HALF_A_HELLO)

    while len(crowd) < count:
        await asyncio.gather(*(arrive() for _ in range(min(WAVE, count - len(crowd)))))
    await until(lambda: plane.event("sockets_opened_destination") == count + 1, "the accepts")

    assert plane.sockets_open("destination") <= LIMIT + 1
    assert len(os.listdir("/proc/self/fd")) - count <= LIMIT + 100, "those refused are closed"
    assert plane.event("handshakes_refused") >= count - LIMIT
    running.data(stream, b"ping")
    assert await served.read(4) == b"ping"
    late = await net.tunnel(plane, source="127.0.0.8")
    assert await late.status(late.connect()) == 200
    await plane.denied(count - LIMIT)
    assert {one.reason for one in plane.of(RecordKind.DENIED)} == {Reason.TOO_BUSY}


async def test_sixteen_stalled_applications_beside_a_fast_one_on_one_tunnel(
    server: Plane, net: Net
) -> None:
    deaf, app = await net.app(), await net.app()
    server.decide = lambda question: forward(
        app.address if inbound_key(question).authority == "app:1" else deaf.address
    )
    tunnel = await net.tunnel(server)
    for _ in range(STALLED):
        stream = tunnel.connect()
        await tunnel.status(stream)
        await tunnel.send(stream, bytes(WINDOW))

    fast = tunnel.connect(authority="app:1")
    served = await app.accept()
    reading = asyncio.ensure_future(served.read_all())
    await tunnel.send(fast, bytes(FAST), end=True)

    assert len(await reading) == FAST
    assert server.engine.debug_counts()["buffered"] <= (STALLED + 1) * WINDOW * 5 // 4
    assert server.event("over_budget") == 0
    waiting = [view.upstream_waiting for view in server.engine.connections()]
    assert max(waiting) <= WINDOW


async def test_sixteen_stalled_users_beside_a_fast_one_on_one_tunnel(
    client: Plane, net: Net
) -> None:
    server = await net.server(settings={INITIAL_WINDOW: WINDOW})
    client.decide = lambda _: through(server.address)
    crowd = [await net.user(client) for _ in range(STALLED)]
    tunnel = await server.tunnel()
    await tunnel.asked(STALLED)
    for stream in sorted(tunnel.headers):
        await tunnel.send(stream, bytes(WINDOW))

    user = await net.user(client)
    fast = await tunnel.asked(STALLED + 1)
    reading = asyncio.ensure_future(user.read_all())
    await tunnel.send(fast, bytes(FAST), end=True)

    assert len(await reading) == FAST
    assert client.engine.debug_counts()["buffered"] <= (STALLED + 1) * WINDOW * 5 // 4
    assert len(server.tunnels) == 1
    assert len(crowd) == STALLED
