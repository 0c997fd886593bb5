# SPDX-License-Identifier: Apache-2.0
"""Ends that cross: a break meets a start, a drain meets a slow reader, a removal meets a queue."""

from __future__ import annotations

import asyncio
import gc
import socket
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import GoAwayFrame

from tests.support.frames import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    INITIAL_WINDOW,
    INTERNAL_ERROR,
    NO_ERROR,
    connect,
)
from tests.support.net import Mesh
from tests.support.plane import CLIENT, SERVER, WORKLOAD, forward, through
from tests.support.sockets import connected
from tests.support.wait import DEADLINE_S, settle, until
from ztunnel_py.dataplane.abc import DrainMode, Role
from ztunnel_py.decide.key import OutboundKey
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import SockAddr, parse_ip

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.apps import Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from tests.support.wire import Wire

BIG = b"0123456789abcdef" * (1 << 18)  # 4 MiB
WIDE = {"stream_window": 16 << 20, "connection_window": 64 << 20}
SMALL = 1 << 16  # of a socket buffer; less, and loopback crawls
TINY = 20_000


async def drained(plane: Plane) -> None:
    """Returns when the engine says so."""
    await asyncio.wait_for(plane.engine.drained(), DEADLINE_S)


LASTING = {"workloads", "listeners", "identities", "buffers", "buffered", "others"}


async def nothing_lives(plane: Plane) -> None:
    """Returns when only the workload itself is left, and what an engine keeps at hand."""

    def lives() -> list[str]:
        counts = plane.engine.debug_counts().items()
        return [name for name, count in counts if count and name not in LASTING]

    await until(lambda: not lives(), "connections, tunnels, tasks and questions to end")


def narrow(one: Tcp | Wire) -> None:
    """Leaves the engine little room in the kernel for what a test is to read."""
    with connected(one.remote, one.local) as engine, connected(one.local, one.remote) as reader:
        engine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)


# --- a break and a start


@pytest.mark.parametrize("how", ["reset", "goaway"])
async def test_stream_that_breaks_in_the_turn_of_its_response_ends_its_connection(
    client: Plane, net: Net, how: str
) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()
    make = tunnel.make

    accepted = make.headers(stream, [(":status", "200")])
    tunnel.say(accepted, make.reset(stream, INTERNAL_ERROR) if how == "reset" else make.goaway(0))

    assert await user.read_all() == b""
    user.end()
    record = await client.closed()
    assert record.reason is (Reason.RECEIVE if how == "reset" else Reason.OK)
    tunnel.hang_up()
    await nothing_lives(client)


@pytest.mark.parametrize("ended", [True, False])
async def test_requests_that_are_reset_at_once_end_the_tunnel_and_leave_nothing(
    server: Plane, net: Net, ended: bool
) -> None:
    tunnel = await net.tunnel(server)

    for _ in range(1100):
        stream = tunnel.request(connect(), end=ended)
        tunnel.say(tunnel.make.reset(stream, CANCEL))

    await tunnel.closed()
    assert [frame.error_code for frame in tunnel.of(GoAwayFrame)] == [ENHANCE_YOUR_CALM]
    await nothing_lives(server)


@pytest.mark.parametrize("how", ["idle", "drained"])
async def test_handshake_that_nobody_waits_for_any_more_leaves_no_tunnel(
    planes: Planes, net: Net, how: str
) -> None:
    plane = await planes(CLIENT, pool_idle_s=1.0)
    app = await net.app()  # holds the handshake up
    plane.decide = lambda _: through(app.address)
    await net.user(plane)
    held = await app.accept()
    (view,) = plane.engine.connections()

    plane.engine.conn_kill([view.id], Reason.POLICY_CHANGED)
    if how == "drained":
        plane.engine.drain(None, DrainMode.GRACEFUL)
        await drained(plane)
    else:
        await plane.closed()
        await settle(1)
        plane.advance(1.5)

    await held.ending()
    await nothing_lives(plane)


# --- a slow reader and an end


@pytest.mark.parametrize("how", ["goaway", "hang up", "loud reset", "quiet reset"])
async def test_slow_user_gets_everything_that_came_before_his_tunnel_went(
    planes: Planes, net: Net, how: str
) -> None:
    plane, server = await planes(CLIENT, **WIDE), await net.server(responds=None)
    plane.decide = lambda _: through(server.address)
    user = await net.user(plane)
    await plane.asked()
    narrow(user)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()
    tunnel.respond(stream)
    user.end()
    await tunnel.end(stream)

    await tunnel.send(stream, BIG, end="reset" not in how)
    await tunnel.fence()
    if how == "goaway":
        tunnel.say(tunnel.make.goaway(stream))
    elif how != "hang up":
        code = INTERNAL_ERROR if how == "loud reset" else NO_ERROR
        tunnel.say(tunnel.make.reset(stream, code))
        await tunnel.fence()
    tunnel.hang_up()
    await until(lambda: not plane.engine.tunnels(), "the tunnel to go")

    assert await user.read_all() == BIG
    loud = how == "loud reset"
    assert (await plane.closed()).reason is (Reason.RECEIVE if loud else Reason.OK)
    await nothing_lives(plane)


async def test_slow_user_gets_everything_of_a_server_that_drains(planes: Planes, net: Net) -> None:
    mesh = Mesh(await planes(CLIENT, **WIDE), await planes(SERVER), net, await net.app())
    user, served = await mesh.connect()
    narrow(user)
    user.end()
    await served.read_all()
    served.send(BIG)
    served.end()
    await until(lambda: not mesh.server.engine.connections(), "the server to have sent it")

    mesh.server.engine.drain(None, DrainMode.GRACEFUL)
    await drained(mesh.server)
    await until(lambda: not mesh.client.engine.tunnels(), "the tunnel to go")

    assert await user.read_all() == BIG
    assert (await mesh.client.closed()).reason is Reason.OK


async def test_drained_waits_for_the_bytes_that_a_slow_client_has_yet_to_take(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    narrow(tunnel)
    stream = tunnel.connect()
    served = await app.accept()
    tunnel.data(stream, b"", end=True)
    server.engine.drain(None, DrainMode.GRACEFUL)
    await tunnel.goaway(2)  # from here on its last stream is what keeps it
    tunnel.pause()
    served.send(BIG[:900_000])
    served.end()
    await until(lambda: not server.engine.connections(), "the stream to be over")
    waiting = asyncio.ensure_future(drained(server))
    await settle()
    assert not waiting.done()

    tunnel.resume()
    await tunnel.body(stream, 600_000)
    server.advance(1)  # slow, and yet it reads

    assert await tunnel.end(stream) == BIG[:900_000]
    await waiting
    await tunnel.closed()


@pytest.mark.parametrize("length", [BIG[: 3 << 20], BIG * 3], ids=["3 MiB", "12 MiB"])
async def test_client_that_reads_again_after_its_tunnel_was_full_gets_everything(
    planes: Planes, net: Net, length: bytes
) -> None:
    server = await planes(SERVER)
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server, settings={INITIAL_WINDOW: 16 << 20})
    narrow(tunnel)
    stream = tunnel.connect()
    served = await app.accept()
    tunnel.data(stream, b"", end=True)
    tunnel.pause()
    served.send(length)
    served.end()
    await settle()

    tunnel.resume()

    assert await tunnel.end(stream) == length


async def test_buffer_budget_ends_the_connection_whose_user_stalled_first(
    planes: Planes, net: Net
) -> None:
    budget = 3 << 20
    plane, server = await planes(CLIENT, buffer_budget=budget), await net.server()
    plane.decide = lambda _: through(server.address)
    deaf = [await net.user(plane) for _ in range(2)]
    await plane.asked(2)
    for user in deaf:
        narrow(user)
    tunnel = await server.tunnel()
    await tunnel.asked(2)
    first, second = sorted(tunnel.headers)
    await tunnel.send(first, BIG[: 3 << 20])
    await tunnel.fence()
    plane.advance(1)

    await tunnel.send(second, BIG[: 3 << 20])

    await tunnel.reset(first)
    record = await plane.closed()
    assert record.reason.describe(record.detail) == (
        f"buffered bytes over the budget of {budget} bytes"
    )
    await tunnel.fence()
    assert list(tunnel.resets) == [first]


async def test_memory_of_a_stalled_stream_is_in_proportion_to_its_bytes_and_not_its_frames(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await server.asked()
    frames = tunnel.make.data(stream, b"ab") * TINY
    await tunnel.fence()

    held = await growth(tunnel, frames)

    assert held < 12 * TINY
    tunnel.data(stream, b"", end=True)
    server.answer(forward(app.address))
    assert await (await app.accept()).read_all() == b"ab" * TINY


async def growth(tunnel: Wire, said: bytes) -> int:
    """Bytes of memory that stay taken once the engine has read what was said."""
    gc.collect()
    tracemalloc.start()
    try:
        tunnel.say(said)
        await tunnel.fence()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


# --- a queue, a negotiation, a goodbye


REMOVALS: dict[str, Callable[[Plane], None]] = {
    "removed": lambda plane: plane.engine.workload_remove(WORKLOAD),
    "drained": lambda plane: plane.engine.drain(None, DrainMode.IMMEDIATE),
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("how", REMOVALS)
async def test_connection_in_the_queue_of_what_is_removed_is_not_served(
    planes: Planes, how: str, role: Role
) -> None:
    server = await planes(SERVER, serve=False)  # nobody accepts it before the end comes
    host, port = server.port(role)
    with socket.create_connection((str(host), port)) as queued:
        queued.setblocking(False)

        REMOVALS[how](server)

        assert await is_let_go(queued)
    await drained(server)
    assert not server.questions
    assert not server.records


async def is_let_go(sock: socket.socket) -> bool:
    """The other side ended it, either way, without a word."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    except ConnectionResetError:
        return True


async def test_idle_socks_client_does_not_hold_up_the_end(client: Plane, net: Net) -> None:
    user = await net.dial(client.port(Role.SOCKS5))
    user.send(b"\x05")
    await until(lambda: client.sockets_open("source") == 1, "the accept")
    await settle(1)

    client.engine.drain(None, DrainMode.IMMEDIATE)

    await user.ending()
    await drained(client)
    await nothing_lives(client)


@pytest.mark.parametrize("drains", [True, False])
async def test_tunnel_whose_client_said_goodbye_closes_after_its_streams(
    server: Plane, net: Net, drains: bool
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    served = await app.accept()

    tunnel.say(tunnel.make.goaway(0))
    await tunnel.fence()
    if drains:
        server.engine.drain(None, DrainMode.GRACEFUL)
    served.send(b"still here")
    assert await tunnel.body(stream, 10) == b"still here"
    tunnel.data(stream, b"", end=True)
    served.end()

    await tunnel.end(stream)
    await tunnel.closed()
    await drained(server)


async def test_mapped_address_of_a_socks_request_is_asked_about_as_ipv4(
    client: Plane, net: Net
) -> None:
    user = await net.dial(client.port(Role.SOCKS5))
    mapped = bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 5])

    user.send(b"\x05\x01\x00" + b"\x05\x01\x00\x04" + mapped + b"\x00\x50")

    target = SockAddr(parse_ip("10.0.0.5"), 80)
    assert (await client.asked()).key == OutboundKey(WORKLOAD, user.local.ip, target)
