# SPDX-License-Identifier: Apache-2.0
"""The two ends of a scenario: a TCP connection, or a stream of a scripted tunnel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from hyperframe.frame import GoAwayFrame

from tests.support.apps import FIN, RST
from tests.support.frames import INITIAL_WINDOW, NO_ERROR

if TYPE_CHECKING:
    from tests.support.apps import Tcp
    from tests.support.wire import Wire

_FRAME = 16_384
_PATTERN = bytes(range(251)) * 300


class EndPoint(Protocol):
    """One end, as a scenario moves it and as a trace sees it."""

    def send(self, length: int, padding: int, *, is_last: bool) -> None:
        """Bytes, and the end behind them."""

    def reset(self, code: int) -> None:
        """Breaks it."""

    def grant(self, length: int) -> None:
        """Lets the engine send more."""

    def resize(self, window: int) -> None:
        """Changes what streams begin with."""

    def goodbye(self, *, includes_stream: bool) -> None:
        """Says GOAWAY."""

    def hang_up(self) -> None:
        """Closes the socket below a stream."""

    @property
    def received(self) -> bytes:
        """All so far."""

    @property
    def ending(self) -> str:
        """How the engine ended it; empty while it has not."""


class TcpEnd:
    """A user or an application. It reads all there is."""

    def __init__(self, tcp: Tcp) -> None:
        self._tcp = tcp
        self._received = bytearray()
        self._ending = ""
        self._sent = 0
        self._is_over = False
        self.may_have_lost = False
        """It was reset with bytes on their way, which the kernel may throw away."""
        self._reading = asyncio.ensure_future(self._read())

    def send(self, length: int, padding: int, *, is_last: bool) -> None:
        """Bytes, and FIN."""
        if not self._is_over and not self._tcp.is_closed:
            self._tcp.send(piece(self._sent, length))
            self._sent += length
            if is_last:
                self._is_over = True
                self._tcp.end()

    def reset(self, code: int) -> None:
        """RST."""
        self._is_over = True
        self._ending = self._ending or "left"
        if not self._tcp.is_closed:
            self._tcp.reset()

    def grant(self, length: int) -> None:
        """The kernel does."""

    def resize(self, window: int) -> None:
        """The kernel does."""

    def goodbye(self, *, includes_stream: bool) -> None:
        """There is no such thing."""

    def hang_up(self) -> None:
        """There is no such thing."""

    @property
    def received(self) -> bytes:
        """All so far."""
        return bytes(self._received)

    @property
    def ending(self) -> str:
        """FIN or RST."""
        return self._ending

    @property
    def sent(self) -> int:
        """Bytes given to the kernel."""
        return self._sent

    async def _read(self) -> None:
        ending = FIN
        try:
            while data := await self._tcp.read_some():
                self._received += data
        except (ConnectionError, TimeoutError):
            ending = RST
        self._ending = self._ending or ending


class StreamEnd:
    """A stream of a scripted tunnel."""

    def __init__(self, wire: Wire, stream: int, window: int, *, is_server: bool) -> None:
        self._left = window
        self._is_server = is_server
        self._is_disowned = False
        """GOAWAY said that it was never served: it may be reset for good measure, or not."""
        self._wire = wire
        self._stream = stream
        self._sent = 0
        self._is_over = False
        self._has_hung_up = False
        self._has_reset = False

    def send(self, length: int, padding: int, *, is_last: bool) -> None:
        """DATA, in all no more than the engine's window at first: when more is granted differs."""
        length = min(length, self._left)
        padding = padding if length + padding + 1 <= self._left else 0
        if self._is_over or self._is_gone:
            return
        for start in range(0, max(length, 1), _FRAME):
            data = piece(self._sent, min(_FRAME, length - start))
            end = is_last and start + _FRAME >= length
            self._sent += len(data)
            self._left -= len(data) + padding + bool(padding)
            self._wire.say(self._wire.make.data(self._stream, data, padding=padding, end=end))
            padding = 0
        self._is_over = is_last

    def reset(self, code: int) -> None:
        """RST_STREAM; a stream that is over both ways has none."""
        if not self._is_gone and not (self._is_over and self.ending):
            self._is_over = self._has_reset = True
            self._wire.say(self._wire.make.reset(self._stream, code))

    def respond(self, status: int) -> None:
        """A response; any but 200 is the end of it."""
        if not self._is_gone and not self._has_reset:
            self._is_over = self._is_over or status != 200
            self._wire.respond(self._stream, status, end=status != 200)

    def grant(self, length: int) -> None:
        """WINDOW_UPDATE."""
        if not self._is_gone and not self.ending:
            self._wire.say(self._wire.make.window(self._stream, length))

    def resize(self, window: int) -> None:
        """SETTINGS."""
        if not self._wire.is_closed:
            self._wire.say(self._wire.make.settings({INITIAL_WINDOW: window}))

    def goodbye(self, *, includes_stream: bool) -> None:
        """GOAWAY; that of a client is about streams of the server, of which there are none."""
        if not self._wire.is_closed:
            last = self._stream if includes_stream and self._is_server else 0
            self._is_disowned = self._is_disowned or (self._is_server and not last)
            self._wire.say(self._wire.make.goaway(last))

    def hang_up(self) -> None:
        """The socket is gone."""
        self._has_hung_up = True
        self._wire.hang_up()

    @property
    def received(self) -> bytes:
        """All so far."""
        return bytes(self._wire.bodies.get(self._stream, b""))

    @property
    def _is_gone(self) -> bool:
        """The engine has reset it, or closed its tunnel."""
        return self._wire.is_closed or self._stream in self._wire.resets

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What the engine said of it."""
        return self._wire.headers.get(self._stream, [])

    @property
    def ending(self) -> str:
        """END_STREAM, RST_STREAM with its code, both, or the end of the tunnel."""
        found = []
        if self._stream in self._wire.ended:
            found.append("END_STREAM")
        if self._stream in self._wire.resets and not self._is_disowned:
            found.append(f"reset {self._wire.resets[self._stream]}")
        if self._has_hung_up:
            return "hung up"
        if self._wire.is_closed:
            codes = {one.error_code for one in self._wire.of(GoAwayFrame)} - {NO_ERROR}
            if codes or not self._has_reset:
                found.append(f"tunnel closed {sorted(codes)}")
        return ", ".join(found)


def piece(start: int, length: int) -> bytes:
    """Bytes that tell where they belong."""
    at = start % 251
    return (_PATTERN * (1 + length // len(_PATTERN)))[at : at + length]
