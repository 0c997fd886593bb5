# SPDX-License-Identifier: Apache-2.0
"""One accepted connection or stream: what it is, and its one ending."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ztunnel_py.dataplane.abc import (
    ConnView,
    Direction,
    Record,
    RecordKind,
    Steps,
)
from ztunnel_py.errors import Reason
from ztunnel_py.reference import trace as traces

if TYPE_CHECKING:
    import asyncio
    import socket

    from ztunnel_py.dataplane.counters import SlotCounts
    from ztunnel_py.decide.key import InboundKey, PassthroughKey
    from ztunnel_py.decide.verdict import Hop, Verdict
    from ztunnel_py.reference.engine import ReferenceEngine
    from ztunnel_py.state.address import SockAddr


class EndedError(Exception):
    """Ends a connection with a reason."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Conn:
    """A connection's facts, counters and ending.

    `opened` makes it a recorded one: from then on its ending is a `connection complete`; without
    it, a `connection failed` line.
    """

    def __init__(
        self,
        engine: ReferenceEngine,
        workload: str,
        direction: Direction,
        src: SockAddr,
        original_dst: SockAddr,
        sock: socket.socket | None = None,
    ) -> None:
        self._engine = engine
        self._sock = sock
        self._is_closed = False
        self.id = engine.next_id()
        self.trace = traces.drawn(is_client=direction is Direction.OUTBOUND)
        self.workload = workload
        self.direction = direction
        self.src = src
        self.original_dst = original_dst
        self.steps = Steps(accepted_ns=time.monotonic_ns())
        self.key: InboundKey | PassthroughKey | None = None
        self.dst = original_dst
        self.hbone_addr = ""
        self.app: SockAddr | None = None
        self.tunnel_reused: bool | None = None
        self.upstream_bytes = 0
        self.downstream_bytes = 0
        self.task: asyncio.Task[None] | None = None
        self.ending: Reason | None = None
        """Why somebody else ends it; set before its task is cancelled."""
        self.ending_detail = ""
        self._hop: Hop | None = None
        self._verdict: Verdict | None = None
        self._slot: SlotCounts | None = None

    @property
    def is_opened(self) -> bool:
        """Labels are known."""
        return self._slot is not None

    def opened(self, verdict: Verdict, hop: Hop, dst: SockAddr) -> None:
        """Labels and log fields are known."""
        self._verdict, self._hop, self.dst = verdict, hop, dst
        self._slot = self._engine.slot(hop.labels)
        self._slot.opened += 1
        self._engine.record(self._record(RecordKind.OPENED, Reason.OK, ""))

    def count_upstream(self, length: int) -> None:
        """Bytes written toward the upstream."""
        self.upstream_bytes += length
        if self._slot is not None:
            self._slot.received += length

    def count_downstream(self, length: int) -> None:
        """Bytes written toward the client."""
        self.downstream_bytes += length
        if self._slot is not None:
            self._slot.sent += length

    def take_sock(self) -> socket.socket:
        """Hands over the accepted socket, unread; once."""
        assert self._sock is not None
        sock, self._sock = self._sock, None
        return sock

    def close_sock(self) -> None:
        """Closes the accepted socket if nobody took it: RST if the client has written."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def closed(self, reason: Reason, detail: str) -> None:
        """The ending; the first one counts."""
        if self._is_closed:
            return
        self._is_closed = True
        self.steps.closed_ns = time.monotonic_ns()
        if self._slot is None:
            self._engine.record(self._record(RecordKind.DENIED, reason, detail))
        else:
            self._slot.count_closed(reason.flag)
            self._engine.record(self._record(RecordKind.CLOSED, reason, detail))

    def kill(self, reason: Reason, detail: str = "") -> None:
        """Ends it from outside."""
        if self.ending is None and self.task is not None and not self.task.done():
            self.ending, self.ending_detail = reason, detail
            self.task.cancel()

    def view(self) -> ConnView:
        """As `connections()` shows it."""
        inbound = self.direction is Direction.INBOUND
        return ConnView(
            id=self.id,
            workload=self.workload,
            direction=self.direction,
            src=self.src,
            original_dst=self.hbone_addr if inbound else str(self.original_dst),
            actual_dst=self.app if inbound else self.dst,
            protocol="" if self._hop is None else self._protocol(),
            age_s=(time.monotonic_ns() - self.steps.accepted_ns) / 1e9,
            upstream_bytes=self.upstream_bytes,
            downstream_bytes=self.downstream_bytes,
            trace=self.trace.id,
        )

    def _protocol(self) -> str:
        if self.direction is Direction.INBOUND:
            return "HBONE" if self.hbone_addr else "TCP"
        assert self._hop is not None
        return self._hop.protocol.value

    def _record(self, kind: RecordKind, reason: Reason, detail: str) -> Record:
        verdict = self._verdict
        return Record(
            kind=kind,
            conn=self.id,
            workload=self.workload,
            direction=self.direction,
            src=self.src,
            dst=self.dst,
            reason=reason,
            detail=detail,
            original_dst=self.original_dst,
            hbone_addr=self.hbone_addr,
            app=self.app,
            upstream_bytes=self.upstream_bytes,
            downstream_bytes=self.downstream_bytes,
            log=None if self._hop is None else self._hop.log,
            policy="" if verdict is None else verdict.policy,
            workload_name="" if verdict is None else verdict.workload,
            protocol="" if self._hop is None else self._protocol(),
            tunnel_reused=self.tunnel_reused,
            steps=self.steps,
            trace=self.trace.id,
            span=self.trace.span,
        )
