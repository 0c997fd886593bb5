# SPDX-License-Identifier: Apache-2.0
"""One CONNECT of a tunnel as an `Io`, ready to be relayed.

While its reader is paused it withholds window credit and keeps what was in flight, so a stalled
reader holds at most one stream window and stops nobody else.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import TYPE_CHECKING

from ztunnel_py.errors import Reason
from ztunnel_py.reference.relay import os_error_text
from ztunnel_py.reference.session import ErrorCodes, SessionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.reference.io import Sink
    from ztunnel_py.reference.session import Headers
    from ztunnel_py.reference.tunnel import Tunnel

RESET_EARLY = "the stream was reset before its response"

_JOINED = 4096
_QUIET_RESETS = (ErrorCodes.NO_ERROR, ErrorCodes.CANCEL)


def broken_pipe() -> OSError:
    """What writing to something that is gone gives."""
    return BrokenPipeError(errno.EPIPE, "Broken pipe")


class Stream:
    """One CONNECT stream of a tunnel, as an `Io`."""

    def __init__(self, tunnel: Tunnel, number: int, headers: Headers) -> None:
        self._tunnel = tunnel
        self.number = number
        self.headers = headers
        self.response: asyncio.Future[tuple[int, Headers]] = asyncio.Future()
        self._sink: Sink | None = None
        self._is_paused = True
        self._inbox: deque[bytes | bytearray] = deque()
        self._outbox: deque[memoryview] = deque()
        self._remote_ended = False
        self._end_queued = False
        self._end_sent = False
        self._error: OSError | None = None
        self.is_closed = False
        """Given up by us, or its tunnel is closed."""
        self.stalled_at: float | None = None
        """Since when bytes wait for the reader, seconds of the clock."""
        self.kill: Callable[[Reason, str], None] | None = None
        """Ends the connection this stream belongs to."""

    # --- Io

    @property
    def is_congested(self) -> bool:
        """Something is queued, or the tunnel's socket is full."""
        return bool(self._outbox) or self._tunnel.is_congested

    @property
    def is_broken(self) -> bool:
        """The stream or its tunnel is gone."""
        return self._error is not None or self.is_closed

    @property
    def unsent(self) -> int:
        """Bytes that wait for window or socket."""
        return sum(len(piece) for piece in self._outbox)

    def start(self, sink: Sink) -> None:
        """Begins to push; what the client sent early comes first."""
        self._sink = sink
        self.resume()

    def write(self, data: bytes) -> None:
        """Sends what the windows allow and queues the rest."""
        if not self.is_broken:
            self._outbox.append(memoryview(data))
            self.pump()

    def end(self) -> None:
        """END_STREAM after what is queued."""
        if not self._end_queued and not self.is_broken:
            self._end_queued = True
            self.pump()

    def pause(self) -> None:
        """Withholds stream credit from now on."""
        self._is_paused = True

    def resume(self) -> None:
        """Pushes what is waiting, then what arrives."""
        self._is_paused = False
        while self._inbox and not self._is_paused and self._sink is not None:
            data = self._inbox.popleft()
            self._tunnel.buffered(-len(data))
            self._push(bytes(data))
        if not self._inbox:
            self.stalled_at = None
            if not self._is_paused:
                self._push_ending()

    def close(self) -> None:
        """Gives the stream up: CANCEL if it is not over."""
        self.abort(ErrorCodes.CANCEL)

    # --- commands of our side

    def abort(self, code: ErrorCodes) -> None:
        """Breaks the stream without a report."""
        self._sink = None
        self._drop()
        if not self.is_closed:
            self._tunnel.close_stream(self, code)

    def respond(self, status: int, headers: Headers) -> bool:
        """Answers the request (server). False if the stream is gone."""
        if self.is_broken:
            return False
        is_sent = self._tunnel.session.respond(self.number, status, headers)
        self._tunnel.flush_soon()
        if status != 200:
            self.abort(ErrorCodes.NO_ERROR)
        return is_sent

    # --- what the tunnel reports

    def arrived(self, data: bytes) -> None:
        """DATA: pushed on, or kept while the reader is paused."""
        if self._is_paused or self._inbox or self._sink is None:
            if self.stalled_at is None:
                self.stalled_at = self._tunnel.now()
            self._keep(data)
            self._tunnel.buffered(len(data))
        else:
            self._push(data)

    def remote_ended(self) -> None:
        """END_STREAM, or a reset that means the same."""
        self._remote_ended = True
        if not self._inbox and not self._is_paused:
            self._push_ending()

    def was_reset(self, code: int) -> None:
        """RST_STREAM. NO_ERROR and CANCEL read as an end, others as errors (spec 8.3)."""
        if not self.response.done():
            self.response.set_exception(SessionError(f"stream reset: {_code_name(code)}"))
            self.response.exception()
        if code in _QUIET_RESETS:
            self._remote_ended = True
            self.broke(broken_pipe())
        elif code == ErrorCodes.STREAM_CLOSED:
            self.broke(broken_pipe())
        else:
            self.broke(OSError(f"stream reset: {_code_name(code)}"))

    def broke(self, error: OSError) -> None:
        """The stream is gone. What had arrived is still pushed, then its end or the error."""
        if not self.response.done():
            self.response.set_exception(SessionError(os_error_text(error)))
            self.response.exception()
        if self._error is not None:
            return  # it has been reported, or waits to be
        self._error = error
        self._outbox.clear()
        if self._sink is None:
            if not self._tunnel.is_client and self.kill is not None:
                self.kill(Reason.H2, RESET_EARLY)
            return
        if not self._inbox and not (self._is_paused and self._remote_ended):
            self._push_ending()
        if self._sink is not None:
            self._sink.writable()

    def pump(self) -> None:
        """Moves queued bytes into the tunnel while windows and the socket allow."""
        was_congested = bool(self._outbox)
        try:
            while self._outbox and not self._tunnel.is_congested:
                piece = self._outbox[0]
                sent = self._tunnel.session.send(self.number, piece)
                if sent == len(piece):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = piece[sent:]
                self._tunnel.queued(sent)  # may end the tunnel, and with it this stream
                if sent < len(piece):
                    return
        except BrokenPipeError as error:
            self.broke(error)
            return
        if self._end_queued and not self._end_sent and not self._outbox:
            self._end_sent = True
            self._tunnel.session.end(self.number)
            self._tunnel.flush_soon()
        if was_congested:
            self.report_writable()

    def report_writable(self) -> None:
        """Tells the sink, if nothing is in the way any more."""
        if self._sink is not None and not self.is_congested:
            self._sink.writable()

    def _push(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.received(data)
            self._tunnel.session.consumed(self.number, len(data))
            self._tunnel.flush_soon()

    def _push_ending(self) -> None:
        if self._sink is None:
            return
        if self._remote_ended:
            self._sink.ended()
        elif self._error is not None:
            sink, self._sink = self._sink, None
            sink.failed(self._error)

    def _keep(self, data: bytes) -> None:
        """Keeps bytes for later; small pieces are joined, for each has a cost of its own."""
        last = self._inbox[-1] if self._inbox else None
        if isinstance(last, bytearray) and len(last) < _JOINED:
            last += data
        else:
            self._inbox.append(bytearray(data) if len(data) < _JOINED else data)

    def _drop(self) -> None:
        self._tunnel.buffered(-sum(len(data) for data in self._inbox))
        self._inbox.clear()
        self._outbox.clear()


def _code_name(code: int) -> str:
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"0x{code:x}"
