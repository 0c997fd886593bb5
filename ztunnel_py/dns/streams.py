# SPDX-License-Identifier: Apache-2.0
"""Queries by TCP at one address, those of a connection one after the other.

Source: spec state, section 7.1; RFC 7766.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING

from ztunnel_py import reuseport
from ztunnel_py.clock import within
from ztunnel_py.dns.forward import receive
from ztunnel_py.dns.message import QUERY_MAX, Transport
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.dns.proxy import DnsProxy
    from ztunnel_py.tasks import Tasks

CONNS_MAX = 64
"""Of one client at one address; the one that has been idle longest makes room."""
IDLE_S = 5.0
"""For a whole query to come, and for its reply to go."""
_BATCH = 16
_BACK_OFF_S = 0.05
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logger("ztunnel::dns")


class Streams:
    """A listening socket; connections wait in the kernel until `serve`."""

    def __init__(self, sock: socket.socket, proxy: DnsProxy, clock: Clock, tasks: Tasks) -> None:
        self._sock = sock
        self._proxy = proxy
        self._clock = clock
        self._tasks = tasks
        self._conns: dict[socket.socket, None] = {}
        self._pause: Timer | None = None
        self.address: tuple[str, int] = sock.getsockname()[:2]

    def serve(self) -> None:
        """Begins to accept."""
        self._pause = None
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def step_aside(self) -> None:
        """Leaves new connections to whoever listens beside this."""
        reuseport.step_aside(self._sock)

    def close(self) -> None:
        """Accepts no more; connections end when what they have asked is answered."""
        if self._pause is not None:
            self._pause.cancel()
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
        for sock in self._conns:
            _end(sock, socket.SHUT_RD)

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._back_off(error)
                    return
                continue  # that connection broke before it was accepted
            sock.setblocking(False)
            if len(self._conns) >= CONNS_MAX:
                oldest = next(iter(self._conns))
                del self._conns[oldest]
                _end(oldest, socket.SHUT_RDWR)
            self._conns[sock] = None
            self._tasks.spawn(self._serve(sock))

    def _back_off(self, error: OSError) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._pause = self._clock.call_later(_BACK_OFF_S, self.serve)
        log.error(f"cannot accept a DNS connection: {error}; trying again shortly")

    async def _serve(self, sock: socket.socket) -> None:
        try:
            while reply := await self._reply(sock):
                sent = asyncio.get_running_loop().sock_sendall(
                    sock, len(reply).to_bytes(2, "big") + reply
                )
                await within(self._clock, IDLE_S, sent)
        except (OSError, EOFError):
            return
        finally:
            self._conns.pop(sock, None)
            sock.close()

    async def _reply(self, sock: socket.socket) -> bytes:
        """The reply to the next query; empty if it deserves none."""
        wire = await within(self._clock, IDLE_S, _query(sock))
        self._conns.pop(sock, None)
        self._conns[sock] = None  # from now on it is the last one that has to make room
        said = self._proxy.at_once(wire, Transport.TCP)
        return said if isinstance(said, bytes) else await self._proxy.answer(said)


async def _query(sock: socket.socket) -> bytes:
    size = int.from_bytes(await receive(sock, 2), "big")
    if size > QUERY_MAX:
        raise EOFError(f"{size} bytes are no query")
    return await receive(sock, size)


def _end(sock: socket.socket, how: int) -> None:
    """Whoever waits for the socket is told that it has ended."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)
