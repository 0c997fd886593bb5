# SPDX-License-Identifier: Apache-2.0
"""A CONNECT stream as the transport of another tunnel: double HBONE."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.reference.stream import Stream
    from ztunnel_py.reference.tunnel import Tunnel


class StreamTransport(asyncio.Transport):
    """Carries `tunnel` on `stream`, whose sink it is: what arrives is the tunnel's wire."""

    def __init__(self, stream: Stream, tunnel: Tunnel) -> None:
        super().__init__()
        self._stream = stream
        self._tunnel = tunnel
        self._is_lost = False
        self._is_paused = False
        self._high_water = 0

    def start(self) -> None:
        """Begins the inner handshake."""
        self._tunnel.connection_made(self)
        self._stream.start(self)

    # --- sink of the stream

    def received(self, data: bytes) -> None:
        """Wire bytes of the inner tunnel."""
        rest = memoryview(data)
        while rest and not self._is_lost:
            buffer = self._tunnel.get_buffer(len(rest))
            n = min(len(buffer), len(rest))
            buffer[:n] = rest[:n]
            self._tunnel.buffer_updated(n)
            rest = rest[n:]

    def ended(self) -> None:
        """The gateway is done with us."""
        if not self._tunnel.eof_received():
            self.close()

    def failed(self, error: OSError, *, in_writing: bool = False) -> None:
        """The stream broke."""
        self._lose(error)

    def writable(self) -> None:
        """The stream has sent everything."""
        if self._is_paused:
            self._is_paused = False
            self._tunnel.resume_writing()

    # --- transport of the tunnel

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends what the windows allow; the stream keeps the rest."""
        self._stream.write(bytes(data))
        if not self._is_paused and self._stream.unsent > self._high_water:
            self._is_paused = True
            self._tunnel.pause_writing()

    def write_eof(self) -> None:
        """END_STREAM behind what was written."""
        self._stream.end()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for a window or the outer tunnel."""
        return self._stream.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """From how many unsent bytes on the tunnel has to wait."""
        self._high_water = high or 0

    def close(self) -> None:
        """What was written may still leave with the stream's end."""
        self._stream.end()
        self._lose(None)

    def abort(self) -> None:
        """At once."""
        self._stream.close()
        self._lose(None)

    def _lose(self, error: OSError | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            asyncio.get_running_loop().call_soon(self._tunnel.connection_lost, error)
