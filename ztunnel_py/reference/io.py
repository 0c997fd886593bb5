# SPDX-License-Identifier: Apache-2.0
"""A byte stream with two independent ends, pushed and paused.

`Io` is what a relay joins: a socket (`SocketIo`, here) or a CONNECT stream (`tunnel.Stream`). Bytes
are pushed to the `Sink` as they arrive. Whoever cannot take more pauses its source, and so nothing
is buffered beyond one chunk and the kernel's or HTTP/2's windows.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import socket

# Read sizes grow with what a direction has carried (spec dataplane, section 8.2).
READ_SIZES = ((0, 1024), (128 << 10, 16384 - 64), (10 << 20, 16 * 16384 - 64))
MAX_READ = READ_SIZES[-1][1]


class Sink(Protocol):
    """Receives what an `Io` reads. After `ended` or `failed` nothing more is received."""

    def received(self, data: bytes) -> None:
        """Bytes arrived, in order."""

    def ended(self) -> None:
        """The remote side will send no more; writing may go on."""

    def failed(self, error: OSError, *, in_writing: bool = False) -> None:
        """The stream broke in both directions; `in_writing`: something written met that."""

    def writable(self) -> None:
        """A congested stream has written everything."""


class Io(Protocol):
    """A byte stream."""

    @property
    def is_congested(self) -> bool:
        """Something written has not left yet: stop pushing until `Sink.writable`."""

    @property
    def is_broken(self) -> bool:
        """`failed` was, or is about to be, reported: nothing can be written."""

    @property
    def unsent(self) -> int:
        """Bytes written that have not left."""

    def start(self, sink: Sink) -> None:
        """Begins to push; what had arrived before is pushed first."""

    def write(self, data: bytes) -> None:
        """Takes all of `data`; the stream may be congested afterwards."""

    def end(self) -> None:
        """Half-closes after what was written."""

    def pause(self) -> None:
        """Stops pushing."""

    def resume(self) -> None:
        """Pushes again."""

    def close(self) -> None:
        """Gives the stream up; what is still half open is broken."""


class SocketIo(asyncio.BufferedProtocol):
    """A connected TCP socket. Reads go through one buffer that all sockets of an engine share."""

    def __init__(self, scratch: memoryview) -> None:
        self._scratch = scratch
        self._sink: Sink | None = None
        self._transport: asyncio.Transport | None = None
        self._carried = 0
        self._step = 0
        self._is_reading = True
        self._early: list[bytes] = []
        self._has_ended = False
        self.read_size = READ_SIZES[0][1]
        self.is_congested = False
        self.is_broken = False

    @classmethod
    async def attach(cls, sock: socket.socket, scratch: memoryview) -> SocketIo:
        """Takes over a connected socket; nothing is read before `start`."""
        loop = asyncio.get_running_loop()
        io = cls(scratch)
        await loop.create_connection(lambda: io, sock=sock)
        io.pause()
        return io

    # --- Io

    @property
    def unsent(self) -> int:
        """Bytes in the transport's buffer."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def start(self, sink: Sink) -> None:
        """Begins to read."""
        self._sink = sink
        self.resume()
        early, self._early = self._early, []
        for data in early:
            sink.received(data)
        if self._has_ended:
            sink.ended()
        elif self.is_broken:
            self._sink = None
            sink.failed(ConnectionResetError(104, "Connection reset by peer"))

    def write(self, data: bytes) -> None:
        """Writes at once what the kernel takes."""
        if self._transport is not None and not self.is_broken:
            self._transport.write(data)

    def end(self) -> None:
        """FIN after what was written."""
        if self._transport is not None and not self.is_broken:
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()

    def pause(self) -> None:
        """Stops reading; the kernel's window closes."""
        if self._transport is not None and self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads again."""
        if self._transport is None or self.is_broken or self._has_ended:
            return
        if not self._is_reading:
            self._is_reading = True
            self._transport.resume_reading()

    def close(self) -> None:
        """Closes the socket: FIN, or RST if bytes were left unread."""
        self._sink = None
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport, to report every unsent byte."""
        own = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport = own
        own.set_write_buffer_limits(high=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        """A piece of the shared buffer as large as this direction has earned."""
        return self._scratch[: self.read_size]

    def buffer_updated(self, nbytes: int) -> None:
        """Pushes what was read."""
        self._carried += nbytes
        while self._step + 1 < len(READ_SIZES) and self._carried >= READ_SIZES[self._step + 1][0]:
            self._step += 1
            self.read_size = READ_SIZES[self._step][1]
        data = bytes(self._scratch[:nbytes])
        if self._sink is None:
            self._early.append(data)  # a loop may read once before `attach` can stop it
        else:
            self._sink.received(data)

    def eof_received(self) -> bool:
        """Pushes the end; True keeps the other direction open."""
        self._is_reading = False
        self._has_ended = True
        if self._sink is not None:
            self._sink.ended()
        return True

    def pause_writing(self) -> None:
        """The kernel did not take everything."""
        self.is_congested = True

    def resume_writing(self) -> None:
        """The kernel has taken everything."""
        self.is_congested = False
        if self._sink is not None:
            self._sink.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports a break; an orderly close is our own doing and needs no report."""
        self.is_broken = True
        self.is_congested = False
        was_reading = self._is_reading
        sink, self._sink = self._sink, None
        if sink is not None:
            known = exc if isinstance(exc, OSError) else None
            error = known or ConnectionResetError(104, "Connection reset by peer")
            sink.failed(error, in_writing=not was_reading)
