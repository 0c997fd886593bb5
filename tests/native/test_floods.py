# SPDX-License-Identifier: Apache-2.0
"""Floods on one tunnel: cut off with the right error, counted, in bounded memory, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    GoAwayFrame,
    HeadersFrame,
    PriorityFrame,
    SettingsFrame,
)

from tests.support.frames import ENHANCE_YOUR_CALM, INITIAL_WINDOW, connect
from tests.support.plane import WORKLOAD, forward, inbound_key, through
from tests.support.wait import until
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.apps import App, Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire

    Flood = Callable[[Wire, int], bytes]

HELD = 1 << 20
"""Bytes that an engine may keep for a tunnel that floods it."""
MANY = 20_000
TEN_MANY = 10 * MANY


@pytest.fixture
async def app(server: Plane, net: Net) -> App:
    """An application behind the server; other authorities than its own are refused."""
    app = await net.app()
    server.decide = lambda question: (
        forward(app.address)
        if inbound_key(question).authority == "app:1"
        else Verdict.deny(Reason.UNKNOWN_HOST)
    )
    return app


@pytest.fixture
async def other(server: Plane, app: App, net: Net) -> tuple[Wire, int, Tcp]:
    """Another client's stream, which has nothing to do with the flood."""
    tunnel = await net.tunnel(server, source="127.0.0.9")
    stream = tunnel.connect(authority="app:1")
    return tunnel, stream, await app.accept()


async def is_cut_off(server: Plane, tunnel: Wire, other: tuple[Wire, int, Tcp]) -> None:
    """The flood ended its tunnel, was counted, left nothing, and hit nobody else."""
    await tunnel.closed()
    assert [one.error_code for one in tunnel.of(GoAwayFrame)] == [ENHANCE_YOUR_CALM]
    await until(lambda: len(server.engine.tunnels()) == 1, "the tunnel to be gone")
    await goes_on(server, other)
    assert server.event("tunnel_floods") == 1


async def goes_on(server: Plane, other: tuple[Wire, int, Tcp]) -> None:
    """Another client's bytes pass, and memory is bounded."""
    wire, stream, served = other
    before = wire.received(stream)
    wire.data(stream, b"ping")
    assert await served.read(4) == b"ping"
    served.send(b"pong")
    assert (await wire.body(stream, before + 4))[before:] == b"pong"
    assert server.engine.debug_counts()["buffered"] <= HELD


# --- frames that bring nobody anything


FLOODS: dict[str, Flood] = {
    "settings": lambda tunnel, _: tunnel.make.settings({INITIAL_WINDOW: 65_535}),
    "settings without content": lambda tunnel, _: tunnel.make.settings(),
    "ping": lambda tunnel, _: tunnel.make.ping(b"01234567"),
    "ping that is acknowledged": lambda tunnel, _: tunnel.make.ping(b"01234567", ack=True),
    "priority": lambda _, stream: PriorityFrame(stream, depends_on=0).serialize(),
    "priority of idle streams": lambda _, __: PriorityFrame(10_001, depends_on=0).serialize(),
    "empty data": lambda tunnel, stream: tunnel.make.data(stream, b""),
}
HARMLESS: dict[str, Flood] = {
    "padding": lambda tunnel, stream: tunnel.make.data(stream, b"", padding=1),
    "unknown": lambda _, __: b"\x00\x00\x04\xbe\x00\x00\x00\x00\x00abcd",
    "window of the stream": lambda tunnel, stream: tunnel.make.window(stream, 1),
    "window of the connection": lambda tunnel, _: tunnel.make.window(0, 1),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_flood_of_frames_that_carry_nothing_is_cut_off(
    server: Plane, app: App, net: Net, other: tuple[Wire, int, Tcp], flood: Flood
) -> None:
    tunnel = await net.tunnel(server)
    stream = tunnel.connect(authority="app:1")
    await tunnel.status(stream)

    tunnel.say(flood(tunnel, stream) * MANY)

    await is_cut_off(server, tunnel, other)


@pytest.mark.parametrize("flood", HARMLESS.values(), ids=HARMLESS)
async def test_flood_of_frames_that_cost_nothing_is_borne(
    server: Plane, app: App, net: Net, other: tuple[Wire, int, Tcp], flood: Flood
) -> None:
    tunnel = await net.tunnel(server)
    stream = tunnel.connect(authority="app:1")
    served = await app.accept()

    tunnel.say(flood(tunnel, stream) * TEN_MANY)
    served.send(b"still here")

    assert await tunnel.body(stream, 10) == b"still here"
    await goes_on(server, other)


async def test_few_frames_that_carry_nothing_are_answered(
    server: Plane, app: App, net: Net
) -> None:
    tunnel = await net.tunnel(server)
    stream = tunnel.connect(authority="app:1")
    served = await app.accept()

    for flood in (*FLOODS.values(), *HARMLESS.values()):
        tunnel.say(flood(tunnel, stream) * 500)
        await tunnel.fence()
    tunnel.data(stream, b"all is well", end=True)

    assert await served.read_all() == b"all is well"


# --- streams that are opened to be broken


RESETS: dict[str, Flood] = {
    "rapid reset": lambda tunnel, stream: tunnel.make.reset(stream),
    "made you reset, window of zero": lambda tunnel, stream: (
        tunnel.make.window(stream, 1)[:-4] + bytes(4)
    ),
    "made you reset, data after the end": lambda tunnel, stream: (
        tunnel.make.data(stream, b"", end=True) + tunnel.make.data(stream, b"x")
    ),
    "made you reset, headers after the end": lambda tunnel, stream: (
        tunnel.make.data(stream, b"", end=True) + tunnel.make.headers(stream, connect())
    ),
    "made you reset, trailers that are no end": lambda tunnel, stream: tunnel.make.headers(
        stream, [("x", "y")]
    ),
    "made you reset, priority on itself": lambda _, stream: PriorityFrame(
        stream, depends_on=stream
    ).serialize(),
}


@pytest.mark.parametrize("flood", RESETS.values(), ids=RESETS)
async def test_streams_that_are_opened_to_be_broken_are_cut_off(
    server: Plane, app: App, net: Net, other: tuple[Wire, int, Tcp], flood: Flood
) -> None:
    server.decide = lambda _: None
    tunnel = await net.tunnel(server)
    before = len(server.flows)

    for _ in range(3000):
        stream = tunnel.connect()
        tunnel.say(flood(tunnel, stream))

    await tunnel.closed()
    assert {one.error_code for one in tunnel.of(GoAwayFrame)} - {0}
    assert len(server.flows) - before <= 1100
    await until(lambda: len(server.engine.tunnels()) == 1, "the tunnel to be gone")
    await until(lambda: len(server.engine.connections()) == 1, "its streams to be gone")
    await goes_on(server, other)


async def test_malformed_requests_in_masses_are_cut_off(
    server: Plane, app: App, net: Net, other: tuple[Wire, int, Tcp]
) -> None:
    tunnel = await net.tunnel(server)

    for _ in range(3000):
        tunnel.connect((":path", "/"))

    await is_cut_off(server, tunnel, other)


async def test_streams_beyond_the_limit_in_masses_are_cut_off(
    server: Plane, app: App, net: Net, other: tuple[Wire, int, Tcp]
) -> None:
    server.decide = lambda _: None
    tunnel = await net.tunnel(server)

    for _ in range(3000):
        tunnel.connect()

    await is_cut_off(server, tunnel, other)


async def test_connections_that_come_and_go_in_order_are_never_cut_off(
    server: Plane, app: App, net: Net
) -> None:
    tunnel = await net.tunnel(server)

    for _ in range(1500):
        stream = tunnel.connect()
        tunnel.data(stream, b"", end=True)
        await tunnel.end(stream)

    await tunnel.fence()


# --- headers


async def test_header_block_of_empty_continuations_ends_the_tunnel(
    server: Plane, net: Net, app: App, other: tuple[Wire, int, Tcp]
) -> None:
    tunnel = await net.tunnel(server)

    tunnel.say(HeadersFrame(1, b"").serialize(), ContinuationFrame(1, b"").serialize() * MANY)

    await tunnel.closed()
    assert {one.error_code for one in tunnel.of(GoAwayFrame)} - {0}
    await goes_on(server, other)


LARGE_ENTRY = b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4000  # literal, goes into the dynamic table
AGAIN = b"\xbe"  # the newest entry of it


@pytest.mark.parametrize("count", [100, 15_000])
async def test_headers_that_expand_cost_their_stream_and_no_memory(
    server: Plane, net: Net, app: App, other: tuple[Wire, int, Tcp], count: int
) -> None:
    tunnel = await net.tunnel(server)
    bomb = connect_block() + LARGE_ENTRY + AGAIN * count
    first, *more = [bomb[at : at + 16_384] for at in range(0, len(bomb), 16_384)]
    frames = [HeadersFrame(1, first, flags=[] if more else ["END_HEADERS"]).serialize()]
    for index, piece in enumerate(more, 1):
        flags = ["END_HEADERS"] if index == len(more) else []
        frames.append(ContinuationFrame(1, piece, flags=flags).serialize())

    tunnel.say(*frames)

    assert await tunnel.status(1) == 431
    await tunnel.fence()
    await goes_on(server, other)


def connect_block() -> bytes:
    """CONNECT app:1, in literals that leave the table alone."""
    return b"\x02\x07CONNECT" + b"\x01\x05app:1"


# --- windows


async def test_window_given_byte_by_byte_is_used_byte_by_byte(client: Plane, net: Net) -> None:
    server = await net.server(settings={INITIAL_WINDOW: 0})
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()
    user.send(bytes(MANY))
    await tunnel.fence()

    tunnel.say(tunnel.make.window(stream, 1) * MANY)

    await tunnel.body(stream, MANY)
    user.end()
    tunnel.say(tunnel.make.window(stream, 1))
    assert len(await tunnel.end(stream)) == MANY


async def test_windows_that_settings_open_and_shut_lose_nothing(
    server: Plane, net: Net, app: App
) -> None:
    tunnel = await net.tunnel(server, settings={INITIAL_WINDOW: 100})
    streams = [tunnel.connect(authority="app:1") for _ in range(3)]
    served = [await app.accept() for _ in streams]
    for tcp in served:
        tcp.send(bytes(10_000))
        tcp.end()

    for size in range(0, 10_051, 50):
        tunnel.say(tunnel.make.settings({INITIAL_WINDOW: 0}))
        tunnel.say(tunnel.make.settings({INITIAL_WINDOW: size}))
    for stream in streams:
        assert len(await tunnel.end(stream)) == 10_000


# --- data in crumbs


@pytest.mark.parametrize("size", [1, 7])
async def test_data_in_crumbs_arrives(
    server: Plane, net: Net, app: App, other: tuple[Wire, int, Tcp], size: int
) -> None:
    tunnel = await net.tunnel(server)
    stream = tunnel.connect(authority="app:1")
    served = await app.accept()

    tunnel.say(tunnel.make.data(stream, b"x" * size) * MANY)
    tunnel.data(stream, b"", end=True)

    assert await served.read_all() == b"x" * size * MANY
    await goes_on(server, other)


async def test_crumbs_of_two_streams_in_turns_arrive(server: Plane, net: Net, app: App) -> None:
    tunnel = await net.tunnel(server)
    streams = []
    for _ in range(2):
        streams.append(tunnel.connect(authority="app:1"))
        await tunnel.status(streams[-1])
    served = [await app.accept() for _ in streams]

    tunnel.say(b"".join(tunnel.make.data(stream, b"x") for stream in streams) * MANY)
    for stream in streams:
        tunnel.data(stream, b"", end=True)

    for tcp in served:
        assert await tcp.read_all() == b"x" * MANY


async def test_crumbs_for_a_reader_that_stalls_take_little_memory(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await server.asked()

    tunnel.say(tunnel.make.data(stream, b"x") * TEN_MANY)
    await tunnel.fence()

    assert server.engine.debug_counts()["buffered"] <= 4 * TEN_MANY


# --- streams that end amid crumbs


CRUMBS = pytest.mark.parametrize("crumb", [b"", b"x"], ids=["empty", "one byte"])
CROWD = 20


@pytest.fixture
async def crowd(server: Plane, app: App, net: Net) -> tuple[Wire, list[int], list[Tcp]]:
    """Streams of one tunnel, and what serves them."""
    tunnel = await net.tunnel(server)
    streams = [tunnel.connect(authority="app:1") for _ in range(CROWD)]
    return tunnel, streams, [await app.accept() for _ in streams]


def crumbs(tunnel: Wire, streams: list[int], crumb: bytes, count: int) -> bytes:
    """DATA of all streams, in turns."""
    return b"".join(tunnel.make.data(stream, crumb) for stream in streams) * count


async def all_gone(server: Plane, served: list[Tcp]) -> None:
    """Applications end what is left, and nothing is."""
    for tcp in served:
        await tcp.ending()
        tcp.close()
    await until(lambda: not server.engine.connections(), "the streams to be gone")


@CRUMBS
async def test_streams_that_are_reset_amid_crumbs_are_freed_once(
    server: Plane, crowd: tuple[Wire, list[int], list[Tcp]], crumb: bytes
) -> None:
    tunnel, streams, served = crowd

    tunnel.say(
        crumbs(tunnel, streams, crumb, 300),
        *(tunnel.make.reset(stream) for stream in streams),
    )

    await all_gone(server, served)


@CRUMBS
async def test_streams_whose_tunnel_breaks_amid_crumbs_are_freed_once(
    server: Plane, crowd: tuple[Wire, list[int], list[Tcp]], crumb: bytes
) -> None:
    tunnel, streams, served = crowd

    tunnel.say(crumbs(tunnel, streams, crumb, 300), b"\x00\x00\x00\x00" + bytes(5))

    await all_gone(server, served)


@CRUMBS
async def test_streams_whose_client_hangs_up_amid_crumbs_are_freed_once(
    server: Plane, crowd: tuple[Wire, list[int], list[Tcp]], crumb: bytes
) -> None:
    tunnel, streams, served = crowd

    tunnel.say(crumbs(tunnel, streams, crumb, 300))
    tunnel.hang_up()

    await all_gone(server, served)


@CRUMBS
async def test_streams_that_end_amid_crumbs_are_freed_once(
    server: Plane, crowd: tuple[Wire, list[int], list[Tcp]], crumb: bytes
) -> None:
    tunnel, streams, served = crowd

    tunnel.say(
        crumbs(tunnel, streams, crumb, 300),
        *(tunnel.make.data(stream, crumb, end=True) for stream in streams),
    )

    await all_gone(server, served)


@CRUMBS
async def test_streams_that_are_killed_amid_crumbs_are_freed_once(
    server: Plane, crowd: tuple[Wire, list[int], list[Tcp]], crumb: bytes
) -> None:
    tunnel, streams, served = crowd
    tunnel.say(crumbs(tunnel, streams, crumb, 300))

    server.engine.conn_kill(list(server.engine.live_keys(WORKLOAD)), Reason.POLICY_CHANGED)
    tunnel.say(crumbs(tunnel, streams, crumb, 100))

    await all_gone(server, served)


@CRUMBS
async def test_applications_that_reset_amid_crumbs_are_freed_once(
    server: Plane, crowd: tuple[Wire, list[int], list[Tcp]], crumb: bytes
) -> None:
    tunnel, streams, served = crowd
    tunnel.say(crumbs(tunnel, streams, crumb, 300))

    for tcp in served:
        tcp.reset()
    tunnel.say(crumbs(tunnel, streams, crumb, 100))
    for stream in streams:
        tunnel.data(stream, b"", end=True)

    await until(lambda: not server.engine.connections(), "the streams to be gone")


@CRUMBS
async def test_streams_that_are_denied_amid_crumbs_are_freed_once(
    server: Plane, net: Net, crumb: bytes
) -> None:
    tunnel = await net.tunnel(server)
    streams = [tunnel.connect() for _ in range(CROWD)]
    await server.asked(CROWD)

    tunnel.say(crumbs(tunnel, streams, crumb, 300))
    server.answer(Verdict.deny(Reason.UNKNOWN_HOST))
    tunnel.say(crumbs(tunnel, streams, crumb, 100))

    for stream in streams:
        assert await tunnel.status(stream) == 503
    await tunnel.fence()


def settings_in_one_frame(count: int) -> bytes:
    """A SETTINGS frame of many entries."""
    return SettingsFrame(settings={0x80 + n: 0 for n in range(count)}).serialize()


async def test_settings_of_many_entries_are_no_flood(
    server: Plane, net: Net, app: App, other: tuple[Wire, int, Tcp]
) -> None:
    tunnel = await net.tunnel(server)

    tunnel.say(settings_in_one_frame(32))
    await tunnel.fence()

    await goes_on(server, other)
