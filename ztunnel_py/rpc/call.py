# SPDX-License-Identifier: Apache-2.0
"""One gRPC call: messages as bytes, both ways. Source: gRPC over HTTP2 (PROTOCOL-HTTP2)."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from grpclib.exceptions import StreamTerminatedError
from grpclib.metadata import decode_grpc_message
from grpclib.protocol import Buffer
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError, StreamClosedError

from ztunnel_py.rpc.errors import OpenError, RpcError, Status
from ztunnel_py.rpc.protocol import CallWaits, StreamEndedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from grpclib.protocol import Stream

    from ztunnel_py.rpc.protocol import Connection

MOST_BYTES = 200 << 20
"""Of one received message."""
_HEAD = 5
"""Bytes before each message: a flag (1 is compressed) and the length."""
_PIECE = 1 << 16
"""Bytes of a message that are read or sent in one turn of the loop."""
_OK = "200"
_HTTP_STATUS = {
    "400": Status.INTERNAL,
    "401": Status.UNAUTHENTICATED,
    "403": Status.PERMISSION_DENIED,
    "404": Status.UNIMPLEMENTED,
    "429": Status.UNAVAILABLE,
    "502": Status.UNAVAILABLE,
    "503": Status.UNAVAILABLE,
    "504": Status.UNAVAILABLE,
}
"""Answers of what is no gRPC server; others are UNKNOWN. Source: gRPC HTTP status mapping."""


class Call:
    """An open call; one task may send while another receives."""

    def __init__(self, stream: Stream, release: Callable[[], None], waits: CallWaits) -> None:
        self._stream = stream
        self._release = release
        self._waits = waits
        self._is_answered = False

    async def send(self, *parts: bytes, end: bool = False) -> None:
        """Sends a message in parts, waiting for room; `end` says that it is the last message.

        What a server does not want any more is dropped: `receive` tells how the call ended.

        Raises:
            RpcError: the connection is lost; OpenError if there was no answer before.
        """
        head = b"\0" + sum(map(len, parts)).to_bytes(_HEAD - 1)
        *pieces, last = _pieces(head, *parts)
        with self._errors(), contextlib.suppress(StreamClosedError), self._waits.sending:
            for piece in pieces:
                await self._stream.send_data(piece)
                await asyncio.sleep(0)
            await self._stream.send_data(last, end_stream=end)

    async def receive(self) -> bytes | None:
        """The next message; None when the server has ended the call in order.

        Raises:
            OpenError: the call ended before it was answered.
            RpcError: it ended with another status than OK, or broke.
        """
        message = await self.receive_large()
        return None if message is None else bytes(message)

    async def receive_large(self) -> bytearray | None:
        """As `receive`, for messages so large that to copy one would stall everything else."""
        if not self._is_answered:
            await self._receive_headers()
        head = await self._read(_HEAD)
        if not head:
            _raise_for_status(await self._trailers(), RpcError)
            return None
        length = int.from_bytes(head[1:])
        if head[0]:
            raise RpcError(Status.INTERNAL, "the server compresses, which nobody asked for")
        if length > MOST_BYTES:
            message = f"a message of {length} bytes; the limit is {MOST_BYTES}"
            raise RpcError(Status.OUT_OF_RANGE, message)
        return await self._message(length)

    def close(self) -> None:
        """Ends the call, whatever its state."""
        if self._stream.closable:
            self._stream.reset_nowait(ErrorCodes.CANCEL)
        self._waits.cancel(StreamEndedError(Status.CANCELLED, "the call was closed"))
        self._release()

    async def _receive_headers(self) -> None:
        """Waits until the server has taken the call, or has answered with nothing but a status."""
        with self._errors(), self._waits:
            headers = _decoded(await self._stream.recv_headers())
        status = headers.get(":status", "none")
        if status != _OK:
            raise OpenError(
                _HTTP_STATUS.get(status, Status.UNKNOWN), f"answered with HTTP status {status}"
            )
        content = headers.get("content-type", "")
        if content.partition("+")[0].partition(";")[0].strip() != "application/grpc":
            raise OpenError(Status.UNKNOWN, f"answered with content-type {content!r}, not gRPC")
        if "grpc-status" in headers:
            _raise_for_status(headers, OpenError)
        self._is_answered = True

    async def _message(self, length: int) -> bytearray:
        """A message, put together piece by piece."""
        message = bytearray()
        while left := length - len(message):
            piece = await self._read(min(left, _PIECE))
            if not piece:
                raise RpcError(Status.INTERNAL, "ended within a message")
            message += piece
        return message

    async def _read(self, size: int) -> bytes:
        with self._errors(), self._waits:
            try:
                return await self._stream.recv_data(size)
            except AssertionError as error:  # grpclib's word for an early end
                raise RpcError(Status.INTERNAL, "ended within a message") from error

    async def _trailers(self) -> dict[str, str]:
        with self._errors(), self._waits:
            headers, trailers = (
                await self._stream.recv_headers(),
                await self._stream.recv_trailers(),
            )
        return _decoded(headers) | _decoded(trailers)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Says in gRPC's words what the connection raises."""
        try:
            yield
        except StreamEndedError as error:
            raise self._failure(error.status, str(error)) from error
        except (StreamTerminatedError, RuntimeError) as error:
            # RuntimeError: uvloop writes to no transport that is closed.
            raise self._failure(Status.UNKNOWN, str(error)) from error
        except ProtocolError as error:
            raise self._failure(Status.INTERNAL, f"HTTP/2: {error}") from error

    def _failure(self, status: Status, message: str) -> RpcError:
        is_answered = self._stream.headers_received.is_set()
        return (RpcError if is_answered else OpenError)(status, message)


async def opened(connection: Connection, headers: Sequence[tuple[str, str]]) -> Call:
    """A new call with these request headers.

    Raises:
        OpenError: the connection does not take it.
    """
    _check(connection)  # it may be gone before whoever dialled it is told that it is there
    waits = CallWaits()
    stream = connection.connection.create_stream(wrapper=waits)
    try:
        with waits:
            release = await stream.send_request(list(headers), _processor=connection.processor)
    except (StreamTerminatedError, ProtocolError, RuntimeError) as error:
        raise OpenError(Status.UNKNOWN, f"the connection takes no call: {error}") from error
    _check(connection)  # it tells its end to the streams that it had then
    assert stream.id is not None
    stream.buffer = Buffer(partial(connection.acknowledge, stream.id))
    return Call(stream, release, waits)


def _pieces(head: bytes, *parts: bytes) -> Iterator[bytes]:
    """A message cut into pieces that are sent quickly; the head comes with the first."""
    for part in parts or (b"",):
        yield head + part[: _PIECE - len(head)]
        for at in range(_PIECE - len(head), len(part), _PIECE):
            yield part[at : at + _PIECE]
        head = b""


def _check(connection: Connection) -> None:
    if connection.connection.is_closing():
        raise OpenError(Status.UNAVAILABLE, "the connection was lost before the call began")


def _decoded(headers: Sequence[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in headers}


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _raise_for_status(headers: dict[str, str], kind: type[RpcError]) -> None:
    text = headers.get("grpc-status")
    try:
        status = Status(int(text or ""))
    except ValueError:
        status = Status.UNKNOWN
    message = decode_grpc_message(headers.get("grpc-message", ""))
    if text is None:
        message = "the answer ended without a status"
    if status is not Status.OK:
        raise kind(status, message)
