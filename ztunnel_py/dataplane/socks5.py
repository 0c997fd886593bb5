# SPDX-License-Identifier: Apache-2.0
"""SOCKS5 for the native engine: negotiated here, then handed to the core as a connected socket.

It is rare and its bytes are few, so the core does not know of it. Until a client has said whereto,
its connection is an affair of this file, which bounds, counts and ends it as the reference engine
does; from then on it is an outbound connection of the core like any other.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztunnel_py.dataplane.abc import Direction, DrainMode, Record, RecordKind, Steps
from ztunnel_py.errors import Reason
from ztunnel_py.reference import sock as sockets
from ztunnel_py.reference.accept import Listener
from ztunnel_py.reference.socks5 import NegotiationError, negotiate
from ztunnel_py.reference.trace import drawn
from ztunnel_py.state.address import SockAddr
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    import socket
    from typing import Protocol

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import EngineSettings, ListenAddress, Resolve, Role
    from ztunnel_py.netns import Netns

    class Owner(Protocol):
        """What an engine does for its SOCKS5 listeners."""

        def adopt(self, workload: str, fd: int, src: SockAddr, dst: SockAddr) -> None:
            """Takes the connected descriptor, and counts its end."""

        def count(self, event: str) -> None:
            """Counts an event."""

        def record(self, record: Record) -> None:
            """Reports an ending."""

        def settle(self) -> None:
            """A workload may have become idle."""


_FIRST_ID = 1 << 63  # the core counts from 1

log = logger("ztunnel::proxy")


@dataclass(slots=True, eq=False)
class _Client:
    """A connection whose destination is not known yet."""

    id: int
    src: SockAddr
    local: SockAddr
    sock: socket.socket | None
    """None: the core has it."""
    steps: Steps
    task: asyncio.Task[None] | None = None
    ending: Reason = Reason.DRAINED
    """Of a task that was cancelled."""
    detail: str = ""

    def end(self, reason: Reason, detail: str = "") -> None:
        """Ends it from outside; the first reason counts."""
        if self.task is not None and not self.task.done() and not self.task.cancelling():
            self.ending, self.detail = reason, detail
            self.task.cancel()


class Socks5:
    """The SOCKS5 listener of one workload, and the clients that have yet to say whereto."""

    _ids = itertools.count(_FIRST_ID)

    def __init__(
        self,
        owner: Owner,
        workload: str,
        where: ListenAddress,
        settings: EngineSettings,
        clock: Clock,
        netns: Netns | None,
        resolve: Resolve | None,
    ) -> None:
        self._owner = owner
        self._workload = workload
        self._settings = settings
        self._clock = clock
        self._resolve = resolve
        self._clients: set[_Client] = set()
        self._listener = Listener(where, clock, self._accepted, self._exhausted, settings, netns)

    @property
    def address(self) -> SockAddr:
        """Where it is bound."""
        return self._listener.address

    @property
    def is_transparent(self) -> bool:
        """Whether the listener could be made transparent."""
        return self._listener.is_transparent

    @property
    def negotiating(self) -> int:
        """Clients that have yet to say whereto."""
        return len(self._clients)

    def serve(self) -> None:
        """Begins to accept."""
        self._listener.serve()

    def step_aside(self) -> None:
        """As the engine."""
        self._listener.step_aside()

    def drain(self, mode: DrainMode) -> None:
        """Closes the listener; negotiations go on (GRACEFUL) or end now."""
        self._listener.close(serve_backlog=mode is DrainMode.GRACEFUL)
        if mode is DrainMode.IMMEDIATE:
            for client in list(self._clients):
                client.end(Reason.DRAINED)

    async def ended(self) -> None:
        """Returns when no negotiation is left."""
        while self._clients:
            await asyncio.wait([client.task for client in self._clients if client.task])

    def _accepted(self, _: Role, sock: socket.socket, src: SockAddr) -> None:
        self._owner.count("sockets_opened_source")
        try:
            sockets.set_accepted_options(sock, self._settings.sockets, keepalive=False)
            local = SockAddr.of(sock.getsockname())
        except OSError:
            self._close(sock)
            return
        if len(self._clients) >= self._settings.handshakes_at_once:
            self._owner.count("handshakes_refused")
            self._longest().end(Reason.TOO_BUSY, "handshakes")
        steps = Steps(accepted_ns=time.monotonic_ns())
        client = _Client(next(self._ids), src, local, sock, steps)
        self._clients.add(client)
        client.task = asyncio.get_running_loop().create_task(self._serve(client, sock))
        client.task.add_done_callback(lambda task: self._ended(client, task))

    async def _serve(self, client: _Client, sock: socket.socket) -> None:
        try:
            limit_s = self._settings.handshake_timeout_s
            target = await negotiate(sock, self._clock, limit_s, self._resolve)
        except (NegotiationError, OSError) as error:
            log.warn(f"failed to negotiate socks connection: {error}")
            return
        client.sock = None
        self._owner.adopt(self._workload, sock.detach(), client.src, target)

    def _ended(self, client: _Client, task: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        if task.cancelled():
            client.steps.closed_ns = time.monotonic_ns()
            self._owner.record(self._record(client))
        elif (error := task.exception()) is not None:
            stack = "".join(traceback.format_exception(error))
            log.error("a connection failed unexpectedly", {"stack": stack})
            self._owner.count("internal_errors")
        if client.sock is not None:
            self._close(client.sock)
        self._owner.settle()

    def _close(self, sock: socket.socket) -> None:
        sock.close()
        self._owner.count("sockets_closed_source")

    def _longest(self) -> _Client:
        """The oldest client of the address that has most of them."""
        clients = sorted(self._clients, key=lambda client: client.id)
        (worst, _), *_ = Counter(client.src.ip for client in clients).most_common(1)
        return next(client for client in clients if client.src.ip == worst)

    def _record(self, client: _Client) -> Record:
        return Record(
            kind=RecordKind.DENIED,
            conn=client.id,
            workload=self._workload,
            direction=Direction.OUTBOUND,
            src=client.src,
            dst=client.local,
            original_dst=client.local,
            reason=client.ending,
            detail=client.detail,
            steps=client.steps,
            trace=drawn(is_client=True).id,
        )

    def _exhausted(self, error: OSError) -> None:
        self._owner.count("accept_exhausted")
        log.error(f"Failed TCP handshake {error}; accepting again shortly")
