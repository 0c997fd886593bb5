# SPDX-License-Identifier: Apache-2.0
"""Frames of wrong sizes, the last stream there is, GOAWAY out of turn, TLS in crumbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame

from tests.support.frames import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    INTERNAL_ERROR,
    PROTOCOL_ERROR,
    connect,
)
from tests.support.plane import forward, through
from tests.support.wait import until
from ztunnel_py.dataplane.abc import RecordKind
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire

LAST_STREAM = 2**31 - 1


@pytest.fixture
async def tunnel(server: Plane, net: Net) -> Wire:
    """A scripted client's tunnel to an engine whose application takes everything."""
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    return await net.tunnel(server)


# --- sizes


def raw(kind: int, payload: bytes, stream: int = 0, flags: int = 0) -> bytes:
    """Any frame."""
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


SIZES = {
    "settings, not a multiple of six": raw(4, bytes(5)),
    "acknowledged settings with content": raw(4, bytes(6), flags=1),
    "settings of a stream": raw(4, bytes(6), stream=1),
    "reset of three bytes": raw(3, bytes(3), stream=1),
    "window of three bytes": raw(8, bytes(3)),
    "window of three bytes of a stream": raw(8, bytes(3), stream=1),
    "goaway of seven bytes": raw(7, bytes(7)),
    "goaway of a stream": raw(7, bytes(8), stream=1),
    "ping of a stream": raw(6, bytes(8), stream=1),
    "data that is all padding and less": raw(0, b"\x05abc", stream=1, flags=8),
    "headers that are all padding and less": raw(1, b"\x05abc", stream=3, flags=12),
}


@pytest.mark.parametrize("frame", SIZES.values(), ids=SIZES)
async def test_frame_of_a_wrong_size_or_place_ends_the_tunnel(tunnel: Wire, frame: bytes) -> None:
    await tunnel.status(tunnel.connect())

    tunnel.say(frame)

    goaway = await tunnel.goaway()
    await tunnel.closed()
    assert goaway.error_code in (FRAME_SIZE_ERROR, PROTOCOL_ERROR)
    assert len(tunnel.of(GoAwayFrame)) == 1


# --- the last stream there is


async def test_last_stream_is_served(tunnel: Wire) -> None:
    tunnel.say(tunnel.make.headers(LAST_STREAM, connect()))

    assert await tunnel.status(LAST_STREAM) == 200


@pytest.mark.parametrize("stream", [1, LAST_STREAM - 2])
async def test_stream_below_one_that_was_opened_is_not_served(
    server: Plane, tunnel: Wire, stream: int
) -> None:
    tunnel.say(tunnel.make.headers(LAST_STREAM, connect()))
    await tunnel.status(LAST_STREAM)

    tunnel.say(tunnel.make.headers(stream, connect()), tunnel.make.ping(b"answered"))
    await until(lambda: tunnel.is_closed or len(acks(tunnel)) == 3, "an end, or none")

    assert len(server.flows) == 1
    assert stream not in tunnel.headers


def acks(tunnel: Wire) -> list[PingFrame]:
    """PINGs that were answered, the fence's included."""
    return [ping for ping in tunnel.of(PingFrame) if "ACK" in ping.flags]


# --- goodbyes out of turn


GOODBYES: dict[str, Callable[[Wire], bytes]] = {
    "twice, the second lower": lambda t: t.make.goaway(LAST_STREAM) + t.make.goaway(1),
    "twice the same": lambda t: t.make.goaway(1) * 2,
    "with an error": lambda t: t.make.goaway(1, INTERNAL_ERROR),
    "with text": lambda _: raw(7, (1).to_bytes(4, "big") + bytes(4) + b"enough"),
    "in masses": lambda t: t.make.goaway(1) * 1000,
}


@pytest.mark.parametrize("goodbye", GOODBYES.values(), ids=GOODBYES)
async def test_goodbye_of_a_server_lets_its_streams_finish(
    client: Plane, net: Net, goodbye: Callable[[Wire], bytes]
) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)
    running = await net.user(client)
    tunnel = await server.tunnel()
    await tunnel.asked()
    running.send(b"before")
    await tunnel.body(1, 6)

    tunnel.say(goodbye(tunnel))
    await tunnel.fence()
    running.send(b", after")
    running.end()

    assert await tunnel.end(1) == b"before, after"
    assert await running.read_all() == b""
    assert (await client.closed()).reason is Reason.OK
    await tunnel.closed()


async def test_goodbye_before_settings_is_an_h2_failure(client: Plane, net: Net) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()

    tunnel.say(tunnel.make.goaway(0))

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.H2


async def test_goodbye_in_the_turn_of_a_hang_up_ends_each_connection_once(
    client: Plane, net: Net
) -> None:
    server = await net.server(responds=None)
    crowd = [await net.user(client) for _ in range(10)]
    await client.asked(10)
    client.answer(through(server.address))
    tunnel = await server.tunnel()
    await tunnel.asked(10)
    for stream in (1, 3, 5):
        tunnel.respond(stream)

    tunnel.say(tunnel.make.goaway(5, INTERNAL_ERROR))
    tunnel.hang_up()

    for user in crowd:
        await user.ending()
        user.close()
    await client.closed(10)
    assert len(client.of(RecordKind.CLOSED)) == 10


async def test_server_that_always_says_goodbye_is_not_tried_for_ever(
    client: Plane, net: Net
) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)

    for count in range(1, 21):
        user = await net.user(client)
        tunnel = await server.tunnel(count)
        tunnel.say(tunnel.make.goaway(0))
        assert await user.read_all() == b""

    await client.closed(20)
    assert {record.reason for record in client.of(RecordKind.CLOSED)} == {Reason.H2}
    assert len(server.tunnels) == 20


async def test_client_that_says_goodbye_and_goes_on_is_served_or_refused(
    server: Plane, tunnel: Wire
) -> None:
    await tunnel.status(tunnel.connect())
    tunnel.say(tunnel.make.goaway(0))
    await tunnel.fence()

    late = tunnel.connect()

    await until(lambda: late in tunnel.headers or late in tunnel.resets, "an answer")


# --- crumbs


async def test_client_whose_tls_comes_byte_by_byte_is_served(server: Plane, net: Net) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server, in_crumbs=True)
    stream = tunnel.connect()
    served = await app.accept()

    tunnel.data(stream, b"byte by byte", end=True)
    assert await served.read_all() == b"byte by byte"
    served.send(b"and back")
    served.end()

    assert await tunnel.end(stream) == b"and back"


async def test_server_whose_tls_comes_byte_by_byte_is_used(client: Plane, net: Net) -> None:
    server = await net.server(in_crumbs=True)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()

    tunnel.data(stream, b"byte by byte")
    assert await user.read(12) == b"byte by byte"
    user.send(b"and back")
    user.end()

    assert await tunnel.end(stream) == b"and back"


async def test_crumbs_that_end_half_way_leave_nothing(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server, in_crumbs=True)
    stream = tunnel.connect()
    await server.asked()

    tunnel.say(tunnel.make.data(stream, b"half")[:11])
    tunnel.hang_up()

    await until(lambda: not server.engine.tunnels(), "the tunnel to be gone")
    await server.denied()


# --- resets that cross


async def test_reset_that_crosses_a_reset_is_no_error(server: Plane, net: Net) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    streams = [tunnel.connect() for _ in range(10)]
    for stream in streams:
        await tunnel.status(stream)

    live = list(server.engine.live_keys("a"))
    tunnel.say(*(tunnel.make.reset(stream, CANCEL) for stream in streams))
    server.engine.conn_kill(live, Reason.POLICY_CHANGED)

    await server.closed(10)
    await tunnel.fence()
    assert ENHANCE_YOUR_CALM not in {one.error_code for one in tunnel.of(GoAwayFrame)}
