# SPDX-License-Identifier: Apache-2.0
"""HBONE without I/O: two sessions talk in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame
from hypothesis import given
from hypothesis import strategies as st

from tests.support.frames import MAX_STREAMS, FrameFactory, FrameReader
from ztunnel_py.dataplane.abc import EngineSettings
from ztunnel_py.reference.session import (
    DrainConfirmed,
    ErrorCodes,
    PingAcked,
    Responded,
    Session,
    SessionError,
    SettingsChanged,
    StreamData,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WentAway,
    WindowOpened,
)

if TYPE_CHECKING:
    from ztunnel_py.reference.session import (
        Event,
    )

CONNECT = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")]
SMALL = EngineSettings(stream_window=65_535, connection_window=65_535, frame_size=16_384)


class Pair:
    """A client and a server; `talk` carries everything that either has to say."""

    def __init__(self, settings: EngineSettings | None = None) -> None:
        settings = settings or EngineSettings()
        self.client = Session(settings, is_client=True)
        self.server = Session(settings, is_client=False)
        self.talk()

    def talk(self) -> tuple[list[Event], list[Event]]:
        """What the client and the server were told."""
        told: tuple[list[Event], list[Event]] = ([], [])
        while True:
            up, down = self.client.take(), self.server.take()
            if not up and not down:
                return told
            told[1].extend(self.server.receive(up) if up else [])
            told[0].extend(self.client.receive(down) if down else [])

    def open(self) -> int:
        """A stream that was answered with 200."""
        stream = self.client.open(CONNECT)
        self.talk()
        self.server.respond(stream, 200)
        self.talk()
        return stream


def of(events: list[Event], kind: type) -> list[Event]:
    """Events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def test_a_stream_opens_carries_both_ways_and_ends() -> None:
    pair = Pair()
    stream = pair.client.open(CONNECT)
    _, at_server = pair.talk()
    assert of(at_server, StreamOpened) == [StreamOpened(stream, CONNECT)]

    pair.server.respond(stream, 200, [("baggage", "a=b")])
    pair.client.send(stream, memoryview(b"up"))
    pair.client.end(stream)
    pair.server.send(stream, memoryview(b"down"))
    pair.server.end(stream)
    at_client, at_server = pair.talk()

    (response,) = of(at_client, Responded)
    assert response == Responded(stream, 200, [(":status", "200"), ("baggage", "a=b")])
    assert of(at_client, StreamData) == [StreamData(stream, b"down")]
    assert of(at_client, StreamEnded) == of(at_server, StreamEnded) == [StreamEnded(stream)]
    assert of(at_server, StreamData) == [StreamData(stream, b"up")]


def test_a_stream_sends_no_more_than_its_window_until_it_is_consumed() -> None:
    pair = Pair(SMALL)
    stream = pair.open()

    first = pair.client.send(stream, memoryview(bytes(100_000)))
    pair.talk()
    blocked = pair.client.send(stream, memoryview(bytes(100)))
    pair.server.consumed(stream, first)
    at_client, _ = pair.talk()
    after = pair.client.send(stream, memoryview(bytes(100)))

    assert (first, blocked, after) == (65_535, 0, 100)
    assert WindowOpened(stream) in at_client


def test_connection_credit_returns_without_anybody_consuming() -> None:
    pair = Pair(EngineSettings(stream_window=65_535, connection_window=131_070))
    streams = [pair.open() for _ in range(5)]

    sent = []
    for stream in streams:
        sent.append(pair.client.send(stream, memoryview(bytes(65_535))))
        pair.talk()

    assert sent == [65_535] * 5


def test_a_final_status_ends_the_request_that_is_still_open() -> None:
    pair = Pair()
    stream = pair.client.open(CONNECT)
    pair.talk()

    pair.server.respond(stream, 401)
    at_client, _ = pair.talk()

    assert of(at_client, Responded)[0] == Responded(stream, 401, [(":status", "401")])
    assert of(at_client, StreamEnded) == [StreamEnded(stream)]
    with pytest.raises(BrokenPipeError):
        pair.client.send(stream, memoryview(b"late"))


def test_a_drain_is_announced_then_confirmed_and_running_streams_go_on() -> None:
    pair = Pair()
    stream = pair.open()

    pair.server.announce_drain()
    at_client, at_server = pair.talk()
    pair.client.send(stream, memoryview(b"still here"))
    _, later = pair.talk()

    assert of(at_client, WentAway) == [WentAway(2**31 - 1, 0), WentAway(stream, 0)]
    assert of(at_server, DrainConfirmed) == [DrainConfirmed()]
    assert of(later, StreamData) == [StreamData(stream, b"still here")]


def test_a_stream_after_the_drain_is_refused() -> None:
    pair = Pair()
    pair.server.announce_drain()
    pair.talk()

    stream = pair.client.open(CONNECT)
    at_client, at_server = pair.talk()

    assert of(at_client, StreamReset) == [StreamReset(stream, ErrorCodes.REFUSED_STREAM)]
    assert not of(at_server, StreamOpened)


def test_a_ping_comes_back() -> None:
    pair = Pair()

    pair.client.ping()
    at_client, at_server = pair.talk()

    assert (of(at_client, PingAcked), of(at_server, PingAcked)) == ([PingAcked()], [])


def test_a_reset_reaches_the_other_side_once() -> None:
    pair = Pair()
    stream = pair.open()

    pair.client.reset(stream, ErrorCodes.CANCEL)
    pair.client.reset(stream, ErrorCodes.CANCEL)
    _, at_server = pair.talk()

    assert of(at_server, StreamReset) == [StreamReset(stream, ErrorCodes.CANCEL)]


def test_nothing_is_said_about_a_stream_that_is_over() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.end(stream)
    pair.server.end(stream)
    pair.talk()

    pair.client.reset(stream, ErrorCodes.CANCEL)
    pair.server.reset(stream, ErrorCodes.CANCEL)

    assert (pair.client.take(), pair.server.take()) == (b"", b"")


@given(cuts=st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_events_do_not_depend_on_how_bytes_arrive(cuts: list[int]) -> None:
    def conversation() -> tuple[bytes, Session]:
        client = Session(EngineSettings(), is_client=True)
        stream = client.open(CONNECT)
        client.send(stream, memoryview(b"x" * 300))
        client.end(stream)
        return client.take(), Session(EngineSettings(), is_client=False)

    data, whole = conversation()
    _, pieces = conversation()
    expected = whole.receive(data)

    found: list[Event] = []
    rest = data
    for cut in [*cuts, len(data)]:
        piece, rest = rest[:cut], rest[cut:]
        found.extend(pieces.receive(piece) if piece else [])

    joined = b"".join(e.data for e in found if isinstance(e, StreamData))
    assert joined == b"x" * 300
    assert [e for e in found if not isinstance(e, StreamData)] == [
        e for e in expected if not isinstance(e, StreamData)
    ]


@given(garbage=st.binary(min_size=9, max_size=400))
def test_garbage_is_refused_or_ignored_and_never_raises_anything_else(garbage: bytes) -> None:
    pair = Pair()

    try:
        pair.server.receive(garbage)
    except SessionError:
        pair.server.close(ErrorCodes.PROTOCOL_ERROR)

    assert isinstance(pair.server.take(), bytes)


def test_goaway_follows_what_was_said_before_it_and_precedes_the_rest() -> None:
    pair = Pair()

    pair.server.ping()
    pair.server.announce_drain()

    kinds = [type(frame) for frame in FrameReader().feed(pair.server.take())]
    assert kinds == [PingFrame, GoAwayFrame, PingFrame]


def test_goaway_names_the_last_stream_that_was_served() -> None:
    pair = Pair()
    pair.open()
    last = pair.open()

    pair.server.close(ErrorCodes.ENHANCE_YOUR_CALM)
    at_client, _ = pair.talk()

    assert of(at_client, WentAway) == [WentAway(last, ErrorCodes.ENHANCE_YOUR_CALM)]


def test_credit_returns_in_quarters_of_the_window() -> None:
    pair = Pair(SMALL)
    stream = pair.open()
    pair.client.send(stream, memoryview(bytes(65_535)))
    pair.talk()

    pair.server.consumed(stream, 16_383)
    assert pair.server.take() == b""
    pair.server.consumed(stream, 1)

    assert pair.server.take()


def test_limit_of_the_other_side_is_known_once_its_settings_are() -> None:
    client = Session(EngineSettings(), is_client=True)
    assert not client.has_settings

    events = client.receive(FrameFactory().settings({MAX_STREAMS: 7}))

    assert SettingsChanged() in events
    assert (client.has_settings, client.max_streams) == (True, 7)


def test_streams_beyond_the_limit_are_refused_until_others_are_over() -> None:
    pair = Pair(EngineSettings(max_streams_served=2))
    factory, server = FrameFactory(), pair.server

    events = server.receive(b"".join(factory.headers(n, CONNECT) for n in (1, 3, 5)))
    server.reset(1, ErrorCodes.CANCEL)
    later = server.receive(factory.headers(7, CONNECT))

    assert of(events, StreamOpened) == [StreamOpened(1, CONNECT), StreamOpened(3, CONNECT)]
    assert of(later, StreamOpened) == [StreamOpened(7, CONNECT)]


def test_broken_bytes_leave_one_goaway_to_send() -> None:
    pair = Pair()

    with pytest.raises(SessionError):
        pair.client.receive(b"\x00\x00\x00\x00\x00\x00\x00\x00\x00")

    (goaway,) = FrameReader().feed(pair.client.take())
    assert isinstance(goaway, GoAwayFrame)
    assert goaway.error_code == ErrorCodes.PROTOCOL_ERROR
