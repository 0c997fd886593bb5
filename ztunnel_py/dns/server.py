# SPDX-License-Identifier: Apache-2.0
"""Answers one client's queries at all addresses, by TCP and UDP.

Source: spec state, section 7.1; identity-ops, section B.8.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from ztunnel_py.clock import within
from ztunnel_py.dns.datagrams import Datagrams
from ztunnel_py.dns.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.clock import Clock
    from ztunnel_py.dns.proxy import DnsProxy
    from ztunnel_py.dns.sockets import Sockets
    from ztunnel_py.tasks import Tasks


class Server:
    """Bound when it is made; what comes waits until `serve`."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        sockets: Sockets,
        proxy: DnsProxy,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        """Binds everything; `tasks` are of this server alone, and end with it.

        Raises:
            OSError: an address cannot be had, and none is; `filename` is the address.
        """
        self._clock = clock
        self._tasks = tasks
        self._is_shared = sockets.shares
        self.streams: list[Streams] = []
        self.datagrams: list[Datagrams] = []
        bound: list[socket.socket] = []
        try:
            for host, port in addresses:
                bound.append(sockets.bind(socket.SOCK_STREAM, host, port))
                self.streams.append(Streams(bound[-1], proxy, clock, tasks))
                bound.append(sockets.bind(socket.SOCK_DGRAM, host, port))
                self.datagrams.append(Datagrams(bound[-1], proxy, tasks))
        except OSError:
            for sock in bound:
                sock.close()
            raise

    def serve(self) -> None:
        """Begins to answer."""
        for stream in self.streams:
            stream.serve()
        for datagram in self.datagrams:
            datagram.serve()

    def step_aside(self) -> None:
        """Leaves new queries to another proxy of the same pod, if there is one."""
        if not self._is_shared:
            return
        for stream in self.streams:
            stream.step_aside()
        for datagram in self.datagrams:
            datagram.step_aside()

    async def drain(self, limit_s: float) -> None:
        """Takes no more queries, and finishes those that it has, but for no longer than this."""
        for stream in self.streams:
            stream.close()
        for datagram in self.datagrams:
            datagram.pause()
        with contextlib.suppress(TimeoutError):
            await within(self._clock, limit_s, self._tasks.done())
        self.stop()
        await self._tasks.done()

    def stop(self) -> None:
        """Ends at once."""
        for stream in self.streams:
            stream.close()
        for datagram in self.datagrams:
            datagram.close()
        self._tasks.cancel()
