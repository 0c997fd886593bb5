# SPDX-License-Identifier: Apache-2.0
"""Two byte streams joined: both directions, half-close, back-pressure, counts.

The directions are independent: one that ends never cancels the other. A direction that ends, in
order or not, half-closes its target. Resets are how many protocols say goodbye, so they are an end
and not an error (spec dataplane, section 8.3).
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.reference.io import Io

_QUIET = frozenset({errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN})


def os_error_text(error: OSError) -> str:
    """The error as ztunnel words it: `Connection refused (os error 111)`."""
    if error.errno is None:
        return str(error) or type(error).__name__
    return f"{os.strerror(error.errno)} (os error {error.errno})"


class Direction:
    """One way of a relay: the sink of `source`, writing to `target`."""

    def __init__(
        self, source: Io, target: Io, count: Callable[[int], None], done: Callable[[], None]
    ) -> None:
        self._source = source
        self._target = target
        self._count = count
        self._done = done
        self._has_ended = False
        self._is_stalled = False
        self.twin: Direction
        self.is_over = False
        self.error: OSError | None = None

    def received(self, data: bytes) -> None:
        """Passes bytes on; pauses the source while the target cannot take more."""
        if self._has_ended:
            return
        if self._target.is_broken:
            self._stop(BrokenPipeError(errno.EPIPE, "Broken pipe"))
            return
        self._target.write(data)
        self._count(len(data))
        if self._target.is_congested:
            self._is_stalled = True
            self._source.pause()

    def ended(self) -> None:
        """Half-closes the target; over once everything has left."""
        self._stop(None)

    def failed(self, error: OSError, *, in_writing: bool = False) -> None:
        """The source broke: ends this way, and the other if it wrote or waits to write there."""
        self._stop(error)
        if in_writing or self.twin._is_stalled or self.twin._has_ended:
            self.twin._stop(error)
            self.twin._finish()

    def writable(self) -> None:
        """The source, as the twin's target, has written everything."""
        self.twin._target_drained()

    def _target_drained(self) -> None:
        was_stalled, self._is_stalled = self._is_stalled, False
        if self._has_ended:
            self._finish()
        elif was_stalled and self._target.is_broken:  # what waited can never leave
            self._stop(BrokenPipeError(errno.EPIPE, "Broken pipe"))
        else:
            self._source.resume()

    def _stop(self, error: OSError | None) -> None:
        """Takes no more from the source; what the target has taken still leaves."""
        if self._has_ended:
            return
        self._has_ended = True
        if error is not None:
            self._source.pause()
            if error.errno not in _QUIET:
                self.error = error
        self._target.end()
        if self._target.is_broken or not self._target.is_congested:
            self._finish()

    def _finish(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._done()


class Relay:
    """A client and its upstream, joined until both directions are over."""

    def __init__(
        self,
        client: Io,
        upstream: Io,
        count_upstream: Callable[[int], None],
        count_downstream: Callable[[int], None],
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sending = Direction(client, upstream, count_upstream, self._check)
        self.receiving = Direction(upstream, client, count_downstream, self._check)
        self.sending.twin, self.receiving.twin = self.receiving, self.sending

    async def run(self) -> tuple[Reason, str]:
        """Relays until both directions are over; returns why and the detail."""
        self._upstream.start(self.receiving)
        self._client.start(self.sending)
        try:
            await self._over
        finally:
            self._client.close()
            self._upstream.close()
        if self.sending.error is not None:
            return Reason.SEND, f"io error: {os_error_text(self.sending.error)}"
        if self.receiving.error is not None:
            return Reason.RECEIVE, f"io error: {os_error_text(self.receiving.error)}"
        return Reason.OK, ""

    def _check(self) -> None:
        if self.sending.is_over and self.receiving.is_over and not self._over.done():
            self._over.set_result(None)
