# SPDX-License-Identifier: Apache-2.0
"""Queries by UDP at one address.

A bounded number is taken in a turn of the loop, so that a client that asks a lot keeps nobody
waiting; what it asks beyond that waits in its socket, and is lost there.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from ztunnel_py import reuseport
from ztunnel_py.dns.message import QUERY_MAX, Transport

if TYPE_CHECKING:
    import socket

    from ztunnel_py.dns.message import Query
    from ztunnel_py.dns.proxy import DnsProxy
    from ztunnel_py.tasks import Tasks

QUERIES_PER_TURN = 32


class Datagrams:
    """A bound socket; queries wait in it until `serve`."""

    def __init__(self, sock: socket.socket, proxy: DnsProxy, tasks: Tasks) -> None:
        self._sock = sock
        self._proxy = proxy
        self._tasks = tasks
        self.address: tuple[str, int] = sock.getsockname()[:2]

    def serve(self) -> None:
        """Begins to answer."""
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._take)

    def step_aside(self) -> None:
        """Leaves new queries to whoever listens beside this."""
        reuseport.step_aside(self._sock)

    def pause(self) -> None:
        """Reads no more queries, but for those that have come already."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._take()

    def close(self) -> None:
        """Answers no more."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()

    def _take(self) -> None:
        for _ in range(QUERIES_PER_TURN):
            try:
                wire, source = self._sock.recvfrom(QUERY_MAX)
            except BlockingIOError:
                return
            except OSError:
                continue  # what became of an earlier reply
            said = self._proxy.at_once(wire, Transport.UDP)
            if isinstance(said, bytes):
                self._send(said, source)
            else:
                self._tasks.spawn(self._answer(said, source))

    async def _answer(self, query: Query, source: tuple[str, int]) -> None:
        self._send(await self._proxy.answer(query), source)

    def _send(self, reply: bytes, source: tuple[str, int]) -> None:
        if reply:
            with contextlib.suppress(OSError):  # lost, as packets may be
                self._sock.sendto(reply, source)
