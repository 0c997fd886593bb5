# SPDX-License-Identifier: Apache-2.0
"""Malformed, oversized and abusive HTTP/2 on an established tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import ContinuationFrame, GoAwayFrame, HeadersFrame, SettingsFrame

from tests.support.frames import (
    ENABLE_PUSH,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    INITIAL_WINDOW,
    MAX_FRAME,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    connect,
)
from tests.support.plane import CLIENT, forward, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import Role
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from tests.support.frames import Headers
    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire

METHOD, AUTHORITY = (":method", "CONNECT"), (":authority", "10.0.0.9:80")


@pytest.fixture
async def tunnel(server: Plane, net: Net) -> Wire:
    """A scripted client's tunnel to an engine whose application takes everything."""
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    return await net.tunnel(server)


async def is_serving(tunnel: Wire) -> bool:
    """A CONNECT still works."""
    return await tunnel.status(tunnel.connect()) == 200


# --- what costs one stream


@pytest.mark.parametrize(
    "headers",
    [
        [METHOD, AUTHORITY, (":scheme", "https")],
        [METHOD, AUTHORITY, (":path", "/")],
        [METHOD, AUTHORITY, (":protocol", "websocket")],
        [AUTHORITY],
        [METHOD],
        [METHOD, METHOD, AUTHORITY],
        [METHOD, AUTHORITY, AUTHORITY],
        [METHOD, AUTHORITY, (":unknown", "x")],
        [METHOD, ("baggage", "x"), AUTHORITY],
        [METHOD, AUTHORITY, ("Baggage", "x")],
        [METHOD, AUTHORITY, ("connection", "close")],
        [METHOD, AUTHORITY, ("te", "gzip")],
        [METHOD, AUTHORITY, (":status", "200")],
        [(":method", "GET"), AUTHORITY, (":path", "/")],
        [(":method", "GET"), AUTHORITY, (":scheme", "https")],
        [],
    ],
    ids=str,
)
async def test_malformed_request_costs_its_stream_and_not_the_tunnel(
    tunnel: Wire, server: Plane, headers: Headers
) -> None:
    stream = tunnel.request(headers)

    assert await tunnel.reset(stream) == PROTOCOL_ERROR
    assert stream not in tunnel.headers
    assert not server.flows
    assert await is_serving(tunnel)


@pytest.mark.parametrize("size", [65_536, 130_000])
async def test_oversized_headers_get_431(tunnel: Wire, server: Plane, size: int) -> None:
    stream = tunnel.connect(*((f"x-{n}", "v" * 1000) for n in range(size // 1000)))

    assert await tunnel.status(stream) == 431
    assert stream in tunnel.ended
    assert not server.flows
    assert await is_serving(tunnel)


async def test_headers_below_the_limit_are_taken(tunnel: Wire) -> None:
    assert await tunnel.status(tunnel.connect(("baggage", "v" * 60_000))) == 200


async def test_connects_beyond_200_are_refused_one_by_one(tunnel: Wire, server: Plane) -> None:
    server.decide = lambda _: None
    streams = [tunnel.connect() for _ in range(210)]

    refused = [await tunnel.reset(stream) for stream in streams[200:]]

    assert refused == [REFUSED_STREAM] * 10
    await server.asked(200)
    await tunnel.fence()
    assert len(server.flows) == 200
    server.answer(Verdict.deny(Reason.UNKNOWN_HOST))
    assert [await tunnel.status(stream) for stream in streams[:200]] == [503] * 200
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)
    assert await tunnel.status(tunnel.connect()) == 503


async def test_data_after_the_end_of_a_stream_is_a_stream_closed_error(tunnel: Wire) -> None:
    stream = tunnel.connect()
    await tunnel.status(stream)
    tunnel.data(stream, b"end", end=True)

    tunnel.data(stream, b"more")

    await until(lambda: stream in tunnel.resets or bool(tunnel.of(GoAwayFrame)), "an error")
    assert STREAM_CLOSED in {*tunnel.resets.values(), *codes(tunnel)}


def codes(tunnel: Wire) -> set[int]:
    """Error codes of GOAWAYs."""
    return {int(frame.error_code) for frame in tunnel.of(GoAwayFrame)}


async def test_window_of_a_stream_that_overflows_costs_at_least_the_stream(tunnel: Wire) -> None:
    stream = tunnel.connect()
    await tunnel.status(stream)

    tunnel.say(tunnel.make.window(stream, 2**31 - 1))

    await until(lambda: stream in tunnel.resets or bool(tunnel.of(GoAwayFrame)), "an error")
    assert FLOW_CONTROL_ERROR in {*tunnel.resets.values(), *codes(tunnel)}


async def test_frames_of_a_stream_that_was_reset_are_ignored(tunnel: Wire) -> None:
    stream = tunnel.connect()
    await tunnel.status(stream)
    tunnel.say(tunnel.make.reset(stream))

    tunnel.say(tunnel.make.window(stream, 10), tunnel.make.reset(stream))

    assert await is_serving(tunnel)


async def test_data_in_flight_to_a_stream_that_we_reset_is_ignored(
    server: Plane, tunnel: Wire
) -> None:
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)
    stream = tunnel.connect()
    await tunnel.reset(stream)

    for _ in range(3):
        tunnel.data(stream, bytes(10_000))

    assert await tunnel.status(tunnel.connect()) == 503


async def test_unknown_frames_and_settings_are_ignored(tunnel: Wire) -> None:
    unknown = b"\x00\x00\x04\xbe\x00\x00\x00\x00\x00abcd"

    tunnel.say(unknown, tunnel.make.settings({0x99: 1}))

    assert await is_serving(tunnel)


# --- what costs the tunnel


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", PROTOCOL_ERROR),
        (b"\x00\x00\x05\x06\x00\x00\x00\x00\x00hello", FRAME_SIZE_ERROR),
        (b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00", PROTOCOL_ERROR),
        (b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff", None),
        (b"\x10\x00\x01\x00\x00\x00\x00\x00\x01", FRAME_SIZE_ERROR),
        (b"\x00\x00\x00\x09\x04\x00\x00\x00\x01", PROTOCOL_ERROR),
        (b"\x00\x00\x04\x03\x00\x00\x00\x00\x63\x00\x00\x00\x00", PROTOCOL_ERROR),
        (b"\x00\x00\x04\x05\x04\x00\x00\x00\x01\x00\x00\x00\x02", PROTOCOL_ERROR),
    ],
    ids=[
        "data on stream 0",
        "short ping",
        "window of zero",
        "broken hpack",
        "frame above the limit",
        "lone continuation",
        "reset of an idle stream",
        "push promise from a client",
    ],
)
async def test_broken_framing_ends_the_tunnel_with_one_goaway(
    tunnel: Wire, frame: bytes, code: int | None
) -> None:
    tunnel.say(frame)

    goaway = await tunnel.goaway()
    await tunnel.closed()
    assert goaway.error_code == code or (code is None and goaway.error_code != 0)
    assert len(tunnel.of(GoAwayFrame)) == 1


@pytest.mark.parametrize(
    ("setting", "value"), [(INITIAL_WINDOW, 2**31), (MAX_FRAME, 1), (ENABLE_PUSH, 2)]
)
async def test_settings_out_of_range_end_the_tunnel(tunnel: Wire, setting: int, value: int) -> None:
    tunnel.say(SettingsFrame(settings={setting: value}).serialize())

    assert (await tunnel.goaway()).error_code in (FLOW_CONTROL_ERROR, PROTOCOL_ERROR)
    await tunnel.closed()


async def test_window_of_the_connection_that_overflows_ends_the_tunnel(tunnel: Wire) -> None:
    tunnel.say(tunnel.make.window(0, 2**31 - 1))

    assert (await tunnel.goaway()).error_code == FLOW_CONTROL_ERROR
    await tunnel.closed()


async def test_data_beyond_the_window_ends_the_tunnel(tunnel: Wire, server: Plane) -> None:
    server.decide = lambda _: None  # nothing is consumed
    stream = tunnel.connect()

    for _ in range(5):
        tunnel.data(stream, bytes(1 << 20))

    assert (await tunnel.goaway()).error_code == FLOW_CONTROL_ERROR
    await tunnel.closed()


@pytest.mark.parametrize("even", [2, 4])
async def test_even_stream_from_a_client_ends_the_tunnel(tunnel: Wire, even: int) -> None:
    tunnel.say(tunnel.make.headers(even, connect()))

    assert (await tunnel.goaway()).error_code == PROTOCOL_ERROR
    await tunnel.closed()


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x00" * 100, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"],
    ids=["http/1.1", "zeros", "almost a preface"],
)
async def test_garbage_after_tls_ends_the_tunnel(server: Plane, net: Net, said: bytes) -> None:
    tunnel = await net.raw_tunnel(server.port(Role.INBOUND), net.certify(CLIENT))

    tunnel.say(said)

    await tunnel.closed()
    await until(lambda: not server.engine.tunnels(), "the tunnel to be gone")


async def test_frame_cut_off_by_the_end_of_the_connection_is_an_end(
    tunnel: Wire, server: Plane, net: Net
) -> None:
    stream = tunnel.connect()
    await tunnel.status(stream)

    tunnel.say(tunnel.make.data(stream, b"x" * 100)[:50])
    await settle(3)
    tunnel.hang_up()

    await until(lambda: not server.engine.tunnels(), "the tunnel to be gone")


async def test_rapid_reset_is_cut_off(tunnel: Wire, server: Plane) -> None:
    server.decide = lambda _: None
    for _ in range(5000):
        stream = tunnel.connect()
        tunnel.say(tunnel.make.reset(stream))

    goaway = await tunnel.goaway()

    assert goaway.error_code == ENHANCE_YOUR_CALM
    await tunnel.closed()
    assert len(server.flows) <= 1100


async def test_endless_header_block_ends_the_tunnel(tunnel: Wire) -> None:
    fragment = ContinuationFrame(1, bytes(16384)).serialize()
    tunnel.say(HeadersFrame(1, bytes(16384)).serialize())

    for _ in range(20):
        tunnel.say(fragment)

    assert (await tunnel.goaway()).error_code in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR)
    await tunnel.closed()


# --- the client's side


@pytest.mark.parametrize(
    "frame",
    [b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10],
    ids=["data on stream 0", "http/1.1"],
)
async def test_broken_framing_of_a_server_ends_all_of_its_connections(
    client: Plane, net: Net, frame: bytes
) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    crowd = [await net.user(client) for _ in range(3)]
    tunnel = await server.tunnel()
    await tunnel.asked(3)

    tunnel.say(frame)

    for count, user in enumerate(crowd, 1):
        assert await user.read_all() == b""
        assert (await client.closed(count)).reason is Reason.H2
    assert not client.engine.tunnels()


async def test_stream_opened_by_a_server_ends_the_tunnel(client: Plane, net: Net) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)
    await net.user(client)
    tunnel = await server.tunnel()
    await tunnel.asked()

    tunnel.say(tunnel.make.headers(2, connect()))

    await tunnel.closed()


async def test_data_before_the_response_is_not_passed_on(client: Plane, net: Net) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()

    tunnel.data(stream, b"unasked")

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.H2
