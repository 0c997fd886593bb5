# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 connection to a gRPC server: grpclib's, but no server can surprise it.

What grpclib leaves to chance is settled here: frames that it does not know, answers that end
without a status, resets after a complete answer, and servers that make us write without end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from grpclib.const import Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import EventsProcessor, H2Protocol
from grpclib.utils import Wrapper
from h2.errors import ErrorCodes
from h2.events import (
    AlternativeServiceAvailable,
    InformationalResponseReceived,
    UnknownFrameReceived,
)
from h2.exceptions import ProtocolError, StreamClosedError

if TYPE_CHECKING:
    from types import TracebackType

    from h2.events import ConnectionTerminated, DataReceived, StreamEnded, StreamReset
    from h2.events import Event as H2Event

_MOST_UNSENT = 1 << 20
"""Bytes of answers to PING and SETTINGS that a server may leave unread."""

_IGNORED = AlternativeServiceAvailable, InformationalResponseReceived, UnknownFrameReceived

_STATUS = {
    ErrorCodes.REFUSED_STREAM: Status.UNAVAILABLE,
    ErrorCodes.CANCEL: Status.CANCELLED,
    ErrorCodes.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    ErrorCodes.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}
"""HTTP/2 errors as gRPC statuses; others are INTERNAL. Source: gRPC over HTTP2, "Errors"."""


class StreamEndedError(StreamTerminatedError):
    """A stream ended without an answer of its server."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class Waits(Wrapper):
    """Waits for a stream: ended when it ends, without hiding that a task itself is cancelled."""

    def cancel(self, error: Exception) -> None:
        """Wakes whoever waits with `error`, which also is what is raised from now on."""
        if self._error is None:
            super().cancel(error)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._error is not None and exc_type is asyncio.CancelledError and task.uncancel():
            self._tasks.discard(task)
            return  # somebody else has cancelled it as well
        super().__exit__(exc_type, exc_val, exc_tb)


class CallWaits(Waits):
    """Waits for the answer of a call, and apart from them those for room to send."""

    def __init__(self) -> None:
        super().__init__()
        self.sending = Waits()

    def cancel(self, error: Exception) -> None:
        """Wakes all, as when a connection is lost."""
        super().cancel(error)
        self.sending.cancel(error)


class Connection(H2Protocol):
    """HTTP/2 on a transport; its streams are grpclib's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says the preface."""
        super().connection_made(transport)
        self._transport = cast("asyncio.Transport", transport)
        self.processor = _Events(self.handler, self.connection)

    def data_received(self, data: bytes) -> None:
        """Takes what the server sent; whatever is wrong with it ends the connection."""
        if self._transport.is_closing():
            return
        try:
            super().data_received(data)
        except (ProtocolError, ValueError, NotImplementedError, AttributeError) as error:
            # AttributeError: grpclib forgets the transport of a connection that it closes.
            self._fail(f"unexpected HTTP/2: {error!r}")
        if self._transport.get_write_buffer_size() > _MOST_UNSENT:
            self._fail("the server makes us write, and does not read")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends all streams; who waits to write need not wait any more."""
        super().connection_lost(exc)
        self.connection.resume_writing()

    def acknowledge(self, stream: int, size: int) -> None:
        """Lets the server send as much again, if it is still there."""
        if not self._transport.is_closing():
            self.connection.ack(stream, size)

    def _fail(self, reason: str) -> None:
        self.processor.close(reason)
        self._transport.abort()


class _Events(EventsProcessor):
    """What happens on a connection, told to its streams."""

    def process(self, event: H2Event) -> None:
        if not isinstance(event, _IGNORED):
            super().process(event)

    def process_data_received(self, event: DataReceived) -> None:
        if event.flow_controlled_length:  # grpclib takes an empty frame for the end
            super().process_data_received(event)

    def process_stream_ended(self, event: StreamEnded) -> None:
        super().process_stream_ended(event)
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        if not stream.trailers_received.is_set():
            stream.trailers = []
            stream.trailers_received.set()
        if stream.closable:
            stream.reset_nowait(ErrorCodes.CANCEL)  # nobody would read what we still send
        if isinstance(stream.wrapper, CallWaits):
            stream.wrapper.sending.cancel(StreamClosedError(event.stream_id))
        stream.wrapper = None  # the answer is complete, whatever becomes of the connection

    def process_stream_reset(self, event: StreamReset) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None or stream.wrapper is None:
            return
        status = _status(event.error_code)
        who = "the server" if event.remote_reset else "a protocol error"
        message = f"stream reset by {who}: {_name(event.error_code)}"
        stream.wrapper.cancel(StreamEndedError(status, message))

    def process_connection_terminated(self, event: ConnectionTerminated) -> None:
        code = event.error_code
        is_graceful = code in (None, ErrorCodes.NO_ERROR)
        status = Status.UNAVAILABLE if is_graceful else _status(code)
        error = StreamEndedError(status, f"received prior goaway: {_name(code)}")
        for stream in self.streams.values():
            if stream.wrapper is not None:
                stream.wrapper.cancel(error)
        self.close(str(error))


def _status(code: ErrorCodes | int | None) -> Status:
    return next((status for known, status in _STATUS.items() if known == code), Status.INTERNAL)


def _name(code: ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, ErrorCodes) else f"error {code}"
