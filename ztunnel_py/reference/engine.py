# SPDX-License-Identifier: Apache-2.0
"""The reference engine: the contract, on asyncio and h2, written to be read.

Reading order: session (HBONE without I/O), tls, io, relay, tunnel, pool, outbound, inbound, and
this file, which owns what lives: workloads, connections, tunnels, counters, questions, records.
Everything happens on the event loop's thread, so nothing here is locked.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import traceback
from collections import Counter
from typing import TYPE_CHECKING
from weakref import WeakSet

from ztunnel_py.clock import LoopClock, within
from ztunnel_py.dataplane.abc import (
    Direction,
    DrainMode,
    Question,
    QuestionKind,
    Role,
    TunnelView,
)
from ztunnel_py.dataplane.counters import SlotCounts
from ztunnel_py.decide.verdict import Action, Epoch, Verdict
from ztunnel_py.errors import Reason, StartError
from ztunnel_py.netns import Netns
from ztunnel_py.reference import inbound, outbound, socks5
from ztunnel_py.reference import sock as sockets
from ztunnel_py.reference.accept import Listener
from ztunnel_py.reference.churn import Churn
from ztunnel_py.reference.conn import Conn, EndedError
from ztunnel_py.reference.io import MAX_READ
from ztunnel_py.reference.local import Local
from ztunnel_py.reference.mailbox import Mailbox
from ztunnel_py.reference.pool import Pool
from ztunnel_py.reference.revocation import Revocation
from ztunnel_py.reference.tls import TlsContexts
from ztunnel_py.state.address import SockAddr
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import (
        ConnView,
        EngineSettings,
        Record,
        RecordLog,
        WorkloadSpec,
    )
    from ztunnel_py.decide.key import InboundKey, Key, PassthroughKey
    from ztunnel_py.decide.verdict import Hop, TrafficLabels
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.reference.tunnel import Tunnel

_RECORDS_MAX = 65536
_QUESTIONS_MAX = 65536

log = logger("ztunnel::proxy")


class ReferenceEngine:
    """Satisfies `ztunnel_py.dataplane.abc.DataPlane`."""

    __impl__ = "reference"
    settings: EngineSettings

    def __init__(self, clock: Clock | None = None, rng: random.Random | None = None) -> None:
        self.clock: Clock = clock or LoopClock()
        self.churn = Churn(self.clock)
        self.scratch = memoryview(bytearray(MAX_READ))
        self._rng = rng or random.SystemRandom()
        self._ids = itertools.count(1)
        self._locals: dict[str, Local] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: Counter[str] = Counter()
        self.revocation = Revocation(self._events)
        self._tunnels: WeakSet[Tunnel] = WeakSet()
        self._slots: dict[TrafficLabels, SlotCounts] = {}
        self._epoch = Epoch()
        self._questions: Mailbox[Question] = Mailbox(_QUESTIONS_MAX)
        self._answers: dict[int, asyncio.Future[Verdict]] = {}
        self._records: Mailbox[Record] = Mailbox(_RECORDS_MAX)
        self._idle_waiters: list[tuple[str | None, asyncio.Future[None]]] = []

    # --- life

    def start(self, settings: EngineSettings) -> None:
        """See the contract."""
        if settings.post_quantum:
            raise StartError(
                "COMPLIANCE_POLICY=pqc: the reference engine cannot choose how keys are exchanged; "
                "set ZTUNNEL_DATAPLANE=native"
            )
        self.settings = settings

    def step_aside(self) -> None:
        """See the contract."""
        for local in self._locals.values():
            for listener in local.listeners.values():
                listener.step_aside()

    def drain(self, workload: str | None, mode: DrainMode) -> None:
        """See the contract."""
        for local in self._scope(workload):
            for listener in local.listeners.values():
                listener.close(serve_backlog=mode is DrainMode.GRACEFUL)
            local.is_draining = True
            for tunnel, _ in list(local.served.values()):
                tunnel.drain()
            if mode is DrainMode.IMMEDIATE:
                self._end_all(local)
            elif not local.conns:
                local.pool.retire_all()
        self._settle()

    async def drained(self, workload: str | None = None) -> None:
        """See the contract."""
        waiter: asyncio.Future[None] = asyncio.Future()
        self._idle_waiters.append((workload, waiter))
        self._settle()
        await waiter

    async def stop(self) -> None:
        """See the contract."""
        self.drain(None, DrainMode.IMMEDIATE)
        for local in list(self._locals.values()):
            self._remove(local)
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._questions.close()
        self._records.close()

    # --- workloads

    def workload_add(self, spec: WorkloadSpec) -> Mapping[Role, SockAddr]:
        """See the contract."""
        pool = Pool(self.clock, self.settings.pool_max_streams, self.settings.pool_idle_s)
        netns = None if spec.netns is None else Netns(spec.netns)
        local = Local(spec.id, pool, netns, spec.resolve)
        try:
            for where in spec.listeners:
                local.listeners[where.role] = Listener(
                    where,
                    self.clock,
                    lambda role, sock, src: self._accepted(local, role, sock, src),
                    self._exhausted,
                    self.settings,
                    netns,
                )
        except BaseException:
            for listener in local.listeners.values():
                listener.close()
            raise
        self._locals[spec.id] = local
        return {role: listener.address for role, listener in local.listeners.items()}

    def workload_serve(self, workload: str) -> None:
        """See the contract."""
        for listener in self._locals[workload].listeners.values():
            listener.serve()

    def workload_remove(self, workload: str) -> None:
        """See the contract."""
        self.drain(workload, DrainMode.IMMEDIATE)
        local = self._locals[workload]
        self._remove(local)
        if local.netns is not None:
            local.netns.close()  # not when the last task that failed is forgotten

    def is_transparent(self, workload: str, role: Role) -> bool:
        """See the contract."""
        return self._locals[workload].is_transparent(role)

    # --- identity

    def identity_set(self, workload: str, certificate: WorkloadCertificate) -> None:
        """See the contract."""
        contexts = TlsContexts(certificate, tls12=self.settings.tls12)
        if workload in self._locals:
            self._locals[workload].contexts = contexts

    def identity_drop(self, workload: str) -> None:
        """See the contract."""
        if workload in self._locals:
            self._locals[workload].contexts = None

    async def revocations_set(self, lists: tuple[bytes, ...]) -> int:
        """See the contract."""
        self.revocation.use(lists)
        revoked = [tunnel for tunnel in self._tunnels if tunnel.is_revoked()]
        for tunnel in revoked:
            tunnel.revoke()
        return len(revoked)

    # --- questions

    @property
    def question_fd(self) -> int:
        """See the contract."""
        return self._questions.fd

    def recv_questions(self, limit: int) -> list[Question]:
        """See the contract."""
        return self._questions.take(limit)

    def reply(self, question: int, verdict: Verdict) -> None:
        """See the contract."""
        answer = self._answers.pop(question, None)
        if answer is not None and not answer.done():
            answer.set_result(verdict)

    # --- epochs and live flows

    def epoch(self) -> Epoch:
        """See the contract."""
        return self._epoch

    def epoch_bump(self, *, discovery: bool = False, policy: bool = False) -> None:
        """See the contract."""
        self._epoch = Epoch(self._epoch.discovery + discovery, self._epoch.policy + policy)

    def live_keys(self, workload: str) -> Mapping[int, InboundKey | PassthroughKey]:
        """See the contract."""
        local = self._locals.get(workload)
        conns = () if local is None else local.conns.values()
        return {conn.id: conn.key for conn in conns if conn.key is not None}

    def conn_kill(self, conns: Sequence[int], reason: Reason) -> None:
        """See the contract."""
        for local in self._locals.values():
            for number in conns:
                if number in local.conns:
                    local.conns[number].kill(reason)

    # --- looking

    def connections(self) -> list[ConnView]:
        """See the contract."""
        return [conn.view() for local in self._locals.values() for conn in local.conns.values()]

    def tunnels(self) -> list[TunnelView]:
        """See the contract."""
        found = []
        for local in self._locals.values():
            for tunnel, src in local.served.values():
                found.append(_view(local, tunnel, Direction.INBOUND, src))
            for key, tunnel in local.pool.tunnels():
                found.append(_view(local, tunnel, Direction.OUTBOUND, key.next_hop))
        return found

    def debug_counts(self) -> Mapping[str, int]:
        """See the contract."""
        return {
            "workloads": len(self._locals),
            "connections": sum(len(local.conns) for local in self._locals.values()),
            "tunnels": len(self.tunnels()),
            "tasks": len(self._tasks),
            "questions": len(self._answers),
        }

    # --- numbers and records

    def slots(self) -> Mapping[TrafficLabels, SlotCounts]:
        """See the contract."""
        return self._slots

    def events(self) -> Mapping[str, int]:
        """See the contract."""
        return self._events

    @property
    def record_fd(self) -> int:
        """See the contract."""
        return self._records.fd

    def recv_records(self, limit: int) -> list[Record]:
        """See the contract."""
        return self._records.take(limit)

    def write_records(self, limit: int, log: RecordLog) -> int:
        """See the contract; all by the long way."""
        records = self._records.take(limit)
        log.begin()
        for record in records:
            log.record(record)
        log.end()
        return len(records)

    def report_opened(self, is_wanted: bool, /) -> None:
        """See the contract; they always come."""

    # --- for the rest of the package

    def next_id(self) -> int:
        """A connection or tunnel id."""
        return next(self._ids)

    def draw(self, hops: Sequence[Hop]) -> Hop:
        """One hop, by weight; hops are never empty and have at least one positive weight."""
        if len(hops) == 1:
            return hops[0]
        return self._rng.choices(hops, [hop.weight for hop in hops])[0]

    def slot(self, labels: TrafficLabels) -> SlotCounts:
        """Counters of a label set."""
        return self._slots.setdefault(labels, SlotCounts())

    def record(self, record: Record) -> None:
        """Reports a record; the oldest is lost, and counted, if nobody reads."""
        if not self._records.put(record):
            self._events["records_lost"] += 1

    async def ask(self, kind: QuestionKind, workload: str, key: Key | None = None) -> Verdict:
        """The verdict on a key. No answer in time is a denial."""
        if len(self._answers) >= _QUESTIONS_MAX:
            self._events["questions_refused"] += 1
            return Verdict.deny(Reason.TOO_BUSY, "questions")
        number = self.next_id()
        answer: asyncio.Future[Verdict] = asyncio.Future()
        self._answers[number] = answer
        self._questions.put(Question(number, kind, workload, key))
        limit = self.settings.decision_timeout_s
        try:
            return await within(self.clock, limit, answer)
        except TimeoutError:
            self._events["decision_timeouts"] += 1
            return Verdict.deny(Reason.DECISION_TIMEOUT, f"{limit:g} s")
        finally:
            self._answers.pop(number, None)

    async def contexts(self, local: Local, reason: Reason) -> TlsContexts:
        """The workload's newest TLS contexts; asks for its certificate if there is none.

        Raises:
            EndedError: with `reason`, there is no certificate to be had.
        """
        if local.contexts is None:
            verdict = await self.ask(QuestionKind.IDENTITY, local.id)
            if verdict.action is not Action.FORWARD or local.contexts is None:
                raise EndedError(reason, verdict.detail or verdict.reason.describe())
        return local.contexts

    def run(
        self,
        local: Local,
        conn: Conn,
        work: Coroutine[object, object, tuple[Reason, str]],
        release: Callable[[], None],
    ) -> None:
        """Runs a connection as a task; however it ends, it is released and recorded, once."""
        task = self._spawn(self._run(conn, work))
        task.add_done_callback(lambda _: work.close())  # never begun if cancelled before that
        self._keep(local, local.conns, conn, task, release)

    def remember(self, tunnel: Tunnel) -> None:
        """Knows of a tunnel as long as anybody does, also in its handshake."""
        self._tunnels.add(tunnel)

    def track_tunnel(self, local: Local, tunnel: Tunnel, remote: SockAddr) -> None:
        """Watches an established tunnel until it closes."""
        tunnel.id = self.next_id()
        tunnel.on_buffered = lambda change: self._buffered(local, change)
        if not tunnel.is_client:
            local.served[tunnel.id] = (tunnel, remote)
            if local.is_draining:
                tunnel.drain()

        def closed(_: asyncio.Future[None]) -> None:
            local.served.pop(tunnel.id, None)
            if tunnel.ping_timed_out:
                self._events["ping_timeouts"] += 1
                # Pods vanish with their namespace: on the serving side this is everyday life.
                level = log.warn if tunnel.is_client else log.debug
                level("HBONE ping timeout/error", {"peer": Display(str(remote))})
            self._settle()

        tunnel.flushed.add_done_callback(closed)

    # --- inside

    async def _run(self, conn: Conn, work: Coroutine[object, object, tuple[Reason, str]]) -> None:
        try:
            conn.closed(*await work)
        except EndedError as error:
            conn.closed(error.reason, error.detail)
        except Exception as error:  # one connection must not take others down
            self._events["internal_errors"] += 1
            stack = "".join(traceback.format_exception(error))
            log.error("a connection failed unexpectedly", {"stack": stack})
            conn.closed(Reason.INTERNAL, type(error).__name__)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _accepted(self, local: Local, role: Role, sock: socket.socket, src: SockAddr) -> None:
        is_inbound = role in (Role.INBOUND, Role.PASSTHROUGH)
        side = "destination" if is_inbound else "source"
        self._events[f"sockets_opened_{side}"] += 1
        has_ping = role in (Role.INBOUND, Role.SOCKS5)
        try:
            sockets.set_accepted_options(sock, self.settings.sockets, keepalive=not has_ping)
            where = SockAddr.of(sock.getsockname())
            if role in (Role.OUTBOUND, Role.PASSTHROUGH):
                where = sockets.original_destination(sock)
        except OSError:
            sock.close()
            self._events[f"sockets_closed_{side}"] += 1
            return
        direction = Direction.INBOUND if is_inbound else Direction.OUTBOUND
        conn = Conn(self, local.id, direction, src, where, sock)

        def release() -> None:
            conn.close_sock()
            self._events[f"sockets_closed_{side}"] += 1

        match role:
            case Role.OUTBOUND:
                self.run(local, conn, outbound.serve(self, local, conn), release)
            case Role.PASSTHROUGH:
                self.run(local, conn, inbound.serve_passthrough(self, local, conn), release)
            case Role.INBOUND:
                self._shake_hands(local, conn, self._serve_tunnel(local, conn), release)
            case Role.SOCKS5:
                self._shake_hands(local, conn, self._serve_socks5(local, conn, sock), release)

    def _shake_hands(
        self,
        local: Local,
        conn: Conn,
        work: Coroutine[object, object, None],
        release: Callable[[], None],
    ) -> None:
        """Runs a connection that has yet to say who or whereto; their number is bounded."""
        if len(local.handshakes) >= self.settings.handshakes_at_once:
            self._events["handshakes_refused"] += 1
            local.longest_handshake().kill(Reason.TOO_BUSY, "handshakes")
        self._keep(local, local.handshakes, conn, self._spawn(work), release)

    def _keep(
        self,
        local: Local,
        living: dict[int, Conn],
        conn: Conn,
        task: asyncio.Task[None],
        release: Callable[[], None],
    ) -> None:
        """Keeps a connection among the living until its task ends; then it is released, once."""
        living[conn.id] = conn
        conn.task = task

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                conn.closed(conn.ending or Reason.DRAINED, conn.ending_detail)
            release()
            living.pop(conn.id, None)
            if local.is_draining and not local.conns:
                local.pool.retire_all()
            self._settle()

        task.add_done_callback(ended)

    async def _serve_tunnel(self, local: Local, conn: Conn) -> None:
        """An inbound HBONE connection; only a handshake that fails is an ending of its own."""
        try:
            tunnel = await inbound.establish(self, local, conn)
        except EndedError as error:
            conn.closed(error.reason, error.detail)
            return
        local.handshakes.pop(conn.id, None)
        self._settle()
        await asyncio.wait([tunnel.flushed])

    async def _serve_socks5(self, local: Local, conn: Conn, sock: socket.socket) -> None:
        """A SOCKS5 client; once it has said whereto, its connection begins."""
        try:
            target = await socks5.negotiate(
                sock, self.clock, self.settings.handshake_timeout_s, local.resolve
            )
        except (socks5.NegotiationError, OSError) as error:
            log.warn(f"failed to negotiate socks connection: {error}")
            return
        served = Conn(self, local.id, Direction.OUTBOUND, conn.src, target, conn.take_sock())
        self.run(local, served, outbound.serve(self, local, served), served.close_sock)
        local.handshakes.pop(conn.id, None)
        assert served.task is not None
        await asyncio.wait([served.task])

    def _exhausted(self, error: OSError) -> None:
        self._events["accept_exhausted"] += 1
        log.error(f"Failed TCP handshake {error}; accepting again shortly")

    def _buffered(self, local: Local, change: int) -> None:
        local.buffered += change
        if change > 0 and local.buffered > self.settings.buffer_budget:
            stalled = [
                stream
                for tunnel in local.tunnels()
                for stream in tunnel.streams.values()
                if stream.stalled_at is not None and stream.kill is not None
            ]
            if stalled:
                longest = min(stalled, key=lambda stream: stream.stalled_at or 0.0)
                self._events["over_budget"] += 1
                assert longest.kill is not None
                longest.kill(Reason.OVER_BUDGET, f"{self.settings.buffer_budget} bytes")

    def _scope(self, workload: str | None) -> list[Local]:
        if workload is None:
            return list(self._locals.values())
        return [self._locals[workload]]

    def _end_all(self, local: Local) -> None:
        for conn in [*local.conns.values(), *local.handshakes.values()]:
            conn.kill(Reason.DRAINED)
        for tunnel, _ in list(local.served.values()):
            tunnel.abort()
        local.pool.abort_all()

    def _remove(self, local: Local) -> None:
        for listener in local.listeners.values():
            listener.close()
        self._locals.pop(local.id, None)

    def _settle(self) -> None:
        for entry in list(self._idle_waiters):
            workload, waiter = entry
            scope = [local for local in self._locals.values() if workload in (None, local.id)]
            if all(local.is_idle for local in scope):
                self._idle_waiters.remove(entry)
                if not waiter.done():
                    waiter.set_result(None)


def _view(local: Local, tunnel: Tunnel, direction: Direction, remote: SockAddr) -> TunnelView:
    return TunnelView(
        id=tunnel.id,
        workload=local.id,
        direction=direction,
        remote=remote,
        identity="" if tunnel.identity is None else str(tunnel.identity),
        streams=len(tunnel.streams),
        age_s=tunnel.age_s,
        is_draining=tunnel.is_draining,
    )
