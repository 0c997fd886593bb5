# SPDX-License-Identifier: Apache-2.0
"""Servers that are odd or hostile: each call ends with a clean error, and the loop is unharmed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import AltSvcFrame, PushPromiseFrame

from tests.support.frames import ENHANCE_YOUR_CALM, NO_ERROR, REFUSED_STREAM
from tests.support.rpc import FrameServer, message
from tests.support.wait import DEADLINE_S, until
from ztunnel_py.rpc.call import opened
from ztunnel_py.rpc.channel import Channel, Pings
from ztunnel_py.rpc.errors import OpenError, RpcError, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.rpc import Frames
    from ztunnel_py.rpc.call import Call

    Script = Callable[[Frames], Awaitable[None]]

REQUEST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]
HELLO = message(b"hello")


@pytest.fixture(autouse=True)
async def loop_complaints() -> AsyncIterator[list[dict[str, object]]]:
    """Nothing may reach the loop's last resort."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, object]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    yield complaints
    loop.set_exception_handler(before)
    assert not complaints


async def received(script: Script, *, end: bool = True) -> list[bytes]:
    """All messages of one call.

    Raises:
        RpcError: as the call ends.
    """
    found = []
    async with FrameServer(script) as server, asyncio.timeout(DEADLINE_S):
        with closing(Channel(server.address, None, lambda: [])) as channel:
            async with channel.call("/a/b") as call:
                await call.send(b"", end=end)
                while (one := await call.receive()) is not None:
                    found.append(one)
    return found


async def ended(script: Script, *, end: bool = True) -> RpcError:
    """How a call fails."""
    with pytest.raises(RpcError) as failed:
        await received(script, end=end)
    return failed.value


def says(*parts: Callable[[Frames], bytes]) -> Script:
    """A server that answers a request with all of this at once."""

    async def script(wire: Frames) -> None:
        await wire.request()
        wire.writer.write(b"".join(part(wire) for part in parts))

    return script


def answer(wire: Frames) -> bytes:
    return wire.answer()


def data(payload: bytes, *, end: bool = False) -> Callable[[Frames], bytes]:
    return lambda wire: wire.data(1, payload, end=end)


def ok(wire: Frames) -> bytes:
    return wire.trailers()


async def test_ordinary_answer_is_received() -> None:
    assert await received(says(answer, data(HELLO), data(message(b"")), ok)) == [b"hello", b""]


@pytest.mark.parametrize(
    "odd",
    [
        lambda wire: b"\0\0\1\x55\0\0\0\0\0x",  # a frame of an unknown type
        lambda wire: AltSvcFrame(0, origin=b"x", field=b"h2=y").serialize(),
        lambda wire: wire.ping(b"12345678"),
        lambda wire: wire.data(1, b""),
    ],
    ids=["unknown frame", "altsvc", "ping", "empty data"],
)
async def test_what_http2_allows_is_ignored(odd: Callable[[Frames], bytes]) -> None:
    assert await received(says(answer, odd, data(HELLO), ok)) == [b"hello"]


async def test_answers_before_the_answer_are_ignored() -> None:
    def hints(wire: Frames) -> bytes:
        return wire.headers(1, [(":status", "103"), ("link", "x")])

    assert await received(says(hints, answer, data(HELLO), ok)) == [b"hello"]


@pytest.mark.parametrize(
    "bad",
    [
        lambda wire: wire.headers(1, [(":status", "200"), ("Upper", "x")]),
        lambda wire: b"\0\0\4\1\4\0\0\0\1\xff\xff\xff\xff",  # no HPACK
        lambda wire: PushPromiseFrame(
            1, promised_stream_id=2, data=wire.block(REQUEST), flags=["END_HEADERS"]
        ).serialize(),
        lambda wire: wire.headers(3, [(":status", "200")]),
        lambda wire: wire.settings({4: 2**31}),
    ],
    ids=["bad header", "hpack", "push", "unasked stream", "bad settings"],
)
async def test_what_http2_forbids_ends_the_call(bad: Callable[[Frames], bytes]) -> None:
    assert isinstance(await ended(says(bad)), OpenError)


async def test_answer_of_another_kind_is_no_open_call() -> None:
    def page(wire: Frames) -> bytes:
        return wire.headers(1, [(":status", "200"), ("content-type", "text/html")])

    error = await ended(says(page))

    assert isinstance(error, OpenError)
    assert "content-type 'text/html', not gRPC" in error.message


@pytest.mark.parametrize(
    ("http", "status"), [("401", Status.UNAUTHENTICATED), ("503", Status.UNAVAILABLE)]
)
async def test_http_error_is_no_open_call(http: str, status: Status) -> None:
    error = await ended(says(lambda wire: wire.headers(1, [(":status", http)], end=True)))

    assert isinstance(error, OpenError)
    assert (error.status, error.message) == (status, f"answered with HTTP status {http}")


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([data(HELLO, end=True)], "without a status"),
        ([data(HELLO[:3], end=True)], "ended within a message"),
        ([data(HELLO[:7], end=True)], "ended within a message"),
        ([data(HELLO[:7]), ok], "ended within a message"),
        ([data(b"\1" + HELLO[1:])], "compresses"),
        ([data(b"\0" + (200 * 2**20 + 1).to_bytes(4))], "the limit is 209715200"),
        ([lambda wire: wire.headers(1, [("x", "y")], end=True)], "without a status"),
        ([lambda wire: wire.headers(1, [("grpc-status", "x")], end=True)], "UNKNOWN"),
        ([lambda wire: wire.trailers(99, "what")], "what"),
    ],
)
async def test_broken_answer_ends_the_call(
    parts: list[Callable[[Frames], bytes]], error: str
) -> None:
    failed = await ended(says(answer, *parts))

    assert not isinstance(failed, OpenError)
    assert error in str(failed)


async def test_end_without_any_headers_is_no_open_call() -> None:
    assert isinstance(await ended(says(data(b"", end=True))), OpenError)


async def test_second_answer_to_one_question_is_an_error() -> None:
    script = says(answer, data(HELLO), data(HELLO), ok)
    async with FrameServer(script) as server:
        channel = Channel(server.address, None, lambda: [])
        with closing(channel), pytest.raises(RpcError, match="exactly one message"):
            await channel.unary("/a/b", b"", DEADLINE_S)


async def test_too_long_a_message_is_refused_before_it_is_read() -> None:
    """The server has only announced it."""
    failed = await ended(says(answer, data(b"\0\xff\xff\xff\xff")))

    assert failed.status is Status.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("code", "status"),
    [(REFUSED_STREAM, Status.UNAVAILABLE), (ENHANCE_YOUR_CALM, Status.RESOURCE_EXHAUSTED)],
)
async def test_reset_tells_its_cause(code: int, status: Status) -> None:
    before = await ended(says(lambda wire: wire.reset(1, code)))
    after = await ended(says(answer, lambda wire: wire.reset(1, code)))

    assert isinstance(before, OpenError)
    assert not isinstance(after, OpenError)
    assert (before.status, after.status) == (status, status)


async def test_reset_after_a_complete_answer_changes_nothing() -> None:
    """Servers close our side like this when they have answered early."""
    script = says(answer, data(HELLO), ok, lambda wire: wire.reset(1, NO_ERROR))

    assert await received(script, end=False) == [b"hello"]


async def test_goaway_ends_calls_in_words_that_mean_reconnect() -> None:
    failed = await ended(says(answer, lambda wire: wire.goaway(1)))

    assert failed.status is Status.UNAVAILABLE
    assert "received prior goaway" in failed.message


async def test_goaway_with_an_error_tells_it() -> None:
    failed = await ended(says(answer, lambda wire: wire.goaway(1, ENHANCE_YOUR_CALM)))

    assert failed.status is Status.RESOURCE_EXHAUSTED


async def test_hanging_up_ends_calls() -> None:
    async def script(wire: Frames) -> None:
        await wire.request()
        wire.writer.write(wire.answer() + wire.data(1, HELLO[:7]))
        wire.writer.write_eof()

    failed = await ended(script)

    assert (failed.status, failed.message) == (Status.UNKNOWN, "Connection lost")


async def test_answer_of_another_protocol_is_no_open_call() -> None:
    async def script(wire: Frames) -> None:
        await wire.request()
        wire.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        wire.writer.write_eof()

    assert isinstance(await ended(script), OpenError)


async def test_connection_that_is_lost_before_a_call_begins_is_no_open_call() -> None:
    async def script(wire: Frames) -> None:
        wire.writer.close()

    async with FrameServer(script) as server:
        channel = Channel(server.address, None, lambda: [])
        with closing(channel):
            connection = await channel._connected()
            await until(connection.connection.is_closing, "the end")
            with pytest.raises(OpenError, match="lost before the call began"):
                await opened(connection, [])


async def test_connection_that_is_lost_while_a_call_waits_to_begin_is_no_open_call() -> None:
    async def script(wire: Frames) -> None:
        await wire.reader.readexactly(1)
        wire.writer.close()

    async with FrameServer(script) as server:
        channel = Channel(server.address, None, lambda: [])
        with closing(channel):
            connection = await channel._connected()
            connection.pause_writing()
            with pytest.raises(OpenError):
                await asyncio.wait_for(opened(connection, REQUEST), DEADLINE_S)


async def test_server_that_makes_us_write_and_does_not_read_is_left() -> None:
    async def script(wire: Frames) -> None:
        await wire.request()
        flood = wire.ping(b"12345678") * 10_000
        while not wire.writer.is_closing():
            wire.writer.write(flood)
            await asyncio.wait_for(wire.writer.drain(), DEADLINE_S)

    failed = await ended(script)

    assert "does not read" in failed.message


async def test_pings_go_on_however_long_a_call_is_silent() -> None:
    pings = 0

    async def script(wire: Frames) -> None:
        nonlocal pings
        await wire.request()
        async for payload in wire.pings():
            pings += 1
            wire.writer.write(wire.ping(payload, ack=True))

    async with FrameServer(script) as server, pinging(server, Pings(0.02, DEADLINE_S)):
        await until(lambda: pings > 4, "five PINGs")


async def test_server_that_answers_no_ping_is_given_up() -> None:
    async with FrameServer(says(answer)) as server, pinging(server, Pings(0.02, 0.05)) as call:
        with pytest.raises(RpcError, match="Connection lost"):
            await asyncio.wait_for(call.receive(), DEADLINE_S)


@asynccontextmanager
async def pinging(server: FrameServer, pings: Pings) -> AsyncIterator[Call]:
    """A call that is watched."""
    with closing(Channel(server.address, None, lambda: [], pings)) as channel:
        async with channel.call("/a/b") as call:
            yield call
