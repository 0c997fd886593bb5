# SPDX-License-Identifier: Apache-2.0
"""The native engine: the contract, carried out by the C core.

The core knows numbers and bytes. Here they get their names: workloads, label sets, keys, verdicts,
records. A verdict's labels, log fields and texts for people never cross: a record comes back with
the verdict that its connection was served by. How values cross: packing.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections import Counter, deque
from typing import TYPE_CHECKING

from ztunnel_py.clock import LoopClock
from ztunnel_py.core import _core
from ztunnel_py.dataplane.abc import DrainMode, Question, Role
from ztunnel_py.dataplane.labels import Slots
from ztunnel_py.dataplane.packing import (
    QUESTION_KINDS,
    HopPacker,
    pack_address,
    pack_verdict,
    unpack_address,
    unpack_key,
)
from ztunnel_py.dataplane.views import (
    LiveKeys,
    conn_view,
    read_record,
    tunnel_view,
    write_records,
)
from ztunnel_py.decide.verdict import Epoch, Verdict
from ztunnel_py.errors import Reason, StartError
from ztunnel_py.netns import Netns
from ztunnel_py.state.address import SockAddr, parse_ip
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import (
        ConnView,
        EngineSettings,
        Record,
        RecordLog,
        TunnelView,
        WorkloadSpec,
    )
    from ztunnel_py.dataplane.counters import SlotCounts
    from ztunnel_py.dataplane.socks5 import Socks5
    from ztunnel_py.decide.key import InboundKey, PassthroughKey
    from ztunnel_py.decide.verdict import TrafficLabels
    from ztunnel_py.identity.certificates import WorkloadCertificate

_ROLES = {Role.OUTBOUND: 0, Role.INBOUND: 1, Role.PASSTHROUGH: 2}
_NS = 1_000_000_000
_NAMES_KEPT = 4096
"""Names of removed workloads, for records that are still on their way."""

log = logger("ztunnel::proxy")


class NativeEngine:
    """Satisfies `ztunnel_py.dataplane.abc.DataPlane`.

    Args:
        clock: time of SOCKS5 negotiations; all other time is the core's.
        manual_time: the core's time stands still until `advance` (tests).
    """

    __impl__ = "native"

    def __init__(self, clock: Clock | None = None, *, manual_time: bool = False) -> None:
        self._clock: Clock = clock or LoopClock()
        self._manual_time = manual_time
        self._is_running = False
        self._wants_opened = True
        self._slots = Slots(_core.SLOTS_MAX)
        self._hops = HopPacker(self._slots.index)
        self._epoch = Epoch()
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._last_id = 0
        self._transparent: dict[tuple[str, Role], bool] = {}
        self._socks: dict[str, Socks5] = {}
        self._leaving: list[Socks5] = []
        self._events: Counter[str] = Counter()
        self._own_records: deque[Record] = deque()
        self._idle_waiters: list[tuple[str | None, asyncio.Future[None]]] = []

    # --- life

    def start(self, settings: EngineSettings) -> None:
        """See the contract.

        Raises:
            StartError: no memory, threads or descriptors; or the TLS library cannot do as asked.
        """
        config = core_config(settings)
        config["report_opened"] = self._wants_opened
        config["has_manual_time"] = self._manual_time
        try:
            self._core = _core.Core(config)
        except OSError as error:
            raise StartError(f"the native engine cannot start: {error.strerror}") from error
        except ValueError as error:
            cause = "COMPLIANCE_POLICY=pqc: " if settings.post_quantum else ""
            raise StartError(f"{cause}{error} (this is {_core.OPENSSL})") from error
        self._settings = settings
        self._is_running = True

    def step_aside(self) -> None:
        """See the contract."""
        for socks in self._socks.values():
            socks.step_aside()
        if self._is_running:
            self._core.step_aside()

    def drain(self, workload: str | None, mode: DrainMode) -> None:
        """See the contract."""
        number = _core.ALL if workload is None else self._ids[workload]
        for name, socks in self._socks.items():
            if workload in (None, name):
                socks.drain(mode)
        if self._is_running:
            self._core.drain(number, mode is DrainMode.IMMEDIATE)
        self.settle()

    async def drained(self, workload: str | None = None) -> None:
        """See the contract."""
        loop = asyncio.get_running_loop()
        entry = workload, loop.create_future()
        if not self._idle_waiters:
            loop.add_reader(self._core.idle_fd, self._idled)
        self._idle_waiters.append(entry)
        self.settle()
        try:
            await entry[1]
        finally:
            self._idle_waiters.remove(entry)
            if not self._idle_waiters:
                loop.remove_reader(self._core.idle_fd)

    async def stop(self) -> None:
        """See the contract."""
        if not self._is_running:
            return
        self.drain(None, DrainMode.IMMEDIATE)
        for socks in [*self._socks.values(), *self._leaving]:
            await socks.ended()
        self._epoch = self.epoch()
        self._is_running = False
        self._core.stop()
        self._socks.clear()
        self._leaving.clear()
        self._ids.clear()
        self.settle()

    # --- workloads

    def workload_add(self, spec: WorkloadSpec) -> Mapping[Role, SockAddr]:
        """See the contract."""
        self._last_id += 1
        number = self._last_id
        wanted = [where for where in spec.listeners if where.role in _ROLES]
        socks = self._open_socks5(spec)
        try:
            bound = self._core.workload_add(
                number,
                -1 if spec.netns is None else spec.netns,
                [
                    (
                        _ROLES[where.role],
                        pack_address(SockAddr(parse_ip(where.address), where.port)),
                    )
                    for where in wanted
                ],
            )
        except OSError as error:
            if socks is not None:
                socks.drain(DrainMode.IMMEDIATE)
            failed = wanted[int(error.filename)]
            at = str(SockAddr(parse_ip(failed.address), failed.port))
            raise OSError(error.errno, _bind_error(error), at) from error
        self._ids[spec.id] = number
        self._names[number] = spec.id
        addresses: dict[Role, SockAddr] = {}
        for where, (packed, is_transparent) in zip(wanted, bound, strict=True):
            address = unpack_address(packed)
            assert address is not None
            addresses[where.role] = address
            self._transparent[spec.id, where.role] = is_transparent
        if socks is not None:
            self._socks[spec.id] = socks
            addresses[Role.SOCKS5] = socks.address
            self._transparent[spec.id, Role.SOCKS5] = socks.is_transparent
        return addresses

    def workload_serve(self, workload: str) -> None:
        """See the contract."""
        self._core.workload_serve(self._ids[workload])
        if workload in self._socks:
            self._socks[workload].serve()

    def workload_remove(self, workload: str) -> None:
        """See the contract."""
        socks = self._socks.pop(workload, None)
        if socks is not None:
            socks.drain(DrainMode.IMMEDIATE)
            self._leaving = [one for one in [*self._leaving, socks] if one.negotiating]
        self._core.workload_remove(self._ids.pop(workload))
        for role in Role:
            self._transparent.pop((workload, role), None)
        if len(self._names) - len(self._ids) > _NAMES_KEPT:
            living = set(self._ids.values())
            self._names = {n: name for n, name in self._names.items() if n in living}
        self.settle()

    def is_transparent(self, workload: str, role: Role) -> bool:
        """See the contract."""
        return self._transparent.get((workload, role), False)

    # --- identity

    def identity_set(self, workload: str, certificate: WorkloadCertificate) -> None:
        """See the contract."""
        if workload in self._ids:
            self._core.identity_set(
                self._ids[workload],
                certificate.chain_pem,
                certificate.key_pem,
                certificate.roots_pem,
            )

    def identity_drop(self, workload: str) -> None:
        """See the contract."""
        if workload in self._ids:
            self._core.identity_drop(self._ids[workload])

    async def revocations_set(self, lists: tuple[bytes, ...]) -> int:
        """See the contract; long lists are read in a thread."""
        if not self._is_running:
            return 0
        await asyncio.to_thread(self._core.revocations_load, lists)
        return self._core.revocations_apply() if self._is_running else 0

    # --- questions

    @property
    def question_fd(self) -> int:
        """See the contract."""
        return self._core.question_fd

    def recv_questions(self, limit: int) -> list[Question]:
        """See the contract; a question that cannot be read is denied here."""
        if not self._is_running:
            return []
        found = []
        for number, kind_number, workload, packed in self._core.recv_questions(limit):
            kind, name = QUESTION_KINDS[kind_number], self._names.get(workload, "")
            try:
                found.append(Question(number, kind, name, unpack_key(kind, name, packed)))
            except ValueError as error:
                log.error("a question cannot be read", {"key": packed.hex(), "error": str(error)})
                self._deny(number)
        return found

    def reply(self, question: int, verdict: Verdict) -> None:
        """See the contract; a verdict that cannot be packed is a denial."""
        if not self._is_running:
            return
        try:
            packed = pack_verdict(verdict, self._hops)
        except ValueError as error:
            self._refuse(question, verdict, str(error))
            return
        if not self._core.reply(question, packed, verdict):
            log.error("the core cannot read a verdict", {"verdict": _start(verdict)})

    # --- epochs and live flows

    def epoch(self) -> Epoch:
        """See the contract."""
        return Epoch(*self._core.epoch()) if self._is_running else self._epoch

    def epoch_bump(self, *, discovery: bool = False, policy: bool = False) -> None:
        """See the contract."""
        if self._is_running:
            self._core.epoch_bump(discovery, policy)

    def live_keys(self, workload: str) -> Mapping[int, InboundKey | PassthroughKey]:
        """See the contract."""
        number = self._ids.get(workload)
        return LiveKeys(workload, () if number is None else self._core.live_keys(number))

    def conn_kill(self, conns: Sequence[int], reason: Reason) -> None:
        """See the contract."""
        if self._is_running:
            self._core.conn_kill(conns, reason.number)

    # --- looking

    def connections(self) -> list[ConnView]:
        """See the contract."""
        if not self._is_running:
            return []
        return [conn_view(raw, self._names) for raw in self._core.connections()]

    def tunnels(self) -> list[TunnelView]:
        """See the contract."""
        if not self._is_running:
            return []
        return [tunnel_view(raw, self._names) for raw in self._core.tunnels()]

    def debug_counts(self) -> Mapping[str, int]:
        """See the contract."""
        counts = dict(zip(_core.KINDS, self._core.counts(), strict=True))
        del counts["core"]  # what it is made of, as long as it runs
        negotiating = sum(one.negotiating for one in [*self._socks.values(), *self._leaving])
        return counts | {"negotiations": negotiating, "buffered": self._core.buffered()}

    # --- numbers and records

    def slots(self) -> Mapping[TrafficLabels, SlotCounts]:
        """See the contract."""
        return self._slots.counts(self._core.slots(len(self._slots)))

    def events(self) -> Mapping[str, int]:
        """See the contract; what never happened is left out."""
        counts = dict(zip(_core.EVENTS, self._core.events(), strict=True))
        for name, count in self._events.items():
            counts[name] = counts.get(name, 0) + count
        return {name: count for name, count in counts.items() if count}

    @property
    def record_fd(self) -> int:
        """See the contract."""
        return self._core.record_fd

    def recv_records(self, limit: int) -> list[Record]:
        """See the contract."""
        own = [self._own_records.popleft() for _ in range(min(limit, len(self._own_records)))]
        names = self._names
        return own + [read_record(raw, names) for raw in self._core.recv_records(limit - len(own))]

    def write_records(self, limit: int, log: RecordLog) -> int:
        """See the contract."""
        own = [self._own_records.popleft() for _ in range(min(limit, len(self._own_records)))]
        for record in own:
            log.record(record)
        raws = self._core.recv_records(limit - len(own))
        write_records(raws, self._names, log)
        return len(own) + len(raws)

    def report_opened(self, is_wanted: bool, /) -> None:
        """See the contract."""
        self._wants_opened = is_wanted
        if self._is_running:
            self._core.report_opened(is_wanted)

    # --- for tests

    def advance(self, seconds: float) -> None:
        """Moves the time of an engine with `manual_time`."""
        if self._is_running:
            self._core.advance(_ns(seconds))

    # --- for SOCKS5

    def adopt(self, workload: str, fd: int, src: SockAddr, dst: SockAddr) -> None:
        """Serves a connected socket as an outbound one; the core counts its end."""
        if workload in self._ids and self._is_running:
            self._core.adopt(self._ids[workload], fd, pack_address(src), pack_address(dst))
        else:
            os.close(fd)
            self.count("sockets_closed_source")

    def count(self, event: str) -> None:
        """Counts an event that the core does not see."""
        self._events[event] += 1

    def record(self, record: Record) -> None:
        """Reports the ending of a connection that the core does not see."""
        self._own_records.append(record)
        os.eventfd_write(self._core.record_fd, 1)

    def settle(self) -> None:
        """Wakes who waits for a scope that is idle."""
        for workload, waiter in self._idle_waiters:
            if not waiter.done() and self._is_idle(workload):
                waiter.set_result(None)

    # --- inside

    def _idled(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._core.idle_fd)
        self.settle()

    def _is_idle(self, workload: str | None) -> bool:
        if not self._is_running:
            return True
        in_scope = [socks for name, socks in self._socks.items() if workload in (None, name)]
        if any(socks.negotiating for socks in in_scope):
            return False
        if workload is None:
            return self._core.is_idle(_core.ALL)
        return workload not in self._ids or self._core.is_idle(self._ids[workload])

    def _open_socks5(self, spec: WorkloadSpec) -> Socks5 | None:
        for where in spec.listeners:
            if where.role is Role.SOCKS5:
                from ztunnel_py.dataplane.socks5 import Socks5  # few workloads have it

                netns = None if spec.netns is None else Netns(spec.netns)
                return Socks5(
                    self, spec.id, where, self._settings, self._clock, netns, spec.resolve
                )
        return None

    def _refuse(self, question: int, verdict: Verdict, problem: str) -> None:
        log.error("a verdict does not fit", {"verdict": _start(verdict), "error": problem})
        self._deny(question)

    def _deny(self, question: int) -> None:
        denial = dataclasses.replace(Verdict.deny(Reason.DECIDER_ERROR), epoch=self.epoch())
        self._core.reply(question, pack_verdict(denial, self._hops), denial)


def _bind_error(error: OSError) -> str | None:
    if isinstance(error, PermissionError):
        return "ENABLE_ORIG_SRC=true needs CAP_NET_ADMIN to keep client addresses"
    return error.strerror


def core_config(settings: EngineSettings) -> dict[str, int]:
    """The fields of `struct core_config` that settings decide."""
    sockets = settings.sockets
    return {
        "n_workers": settings.workers,
        "stream_window": settings.stream_window,
        "connection_window": settings.connection_window,
        "frame_size": settings.frame_size,
        "max_streams_served": settings.max_streams_served,
        "pool_max_streams": settings.pool_max_streams,
        "pool_idle_ns": _ns(settings.pool_idle_s),
        "ping_interval_ns": _ns(settings.ping_interval_s),
        "ping_timeout_ns": _ns(settings.ping_timeout_s),
        "connect_timeout_ns": _ns(settings.connect_timeout_s),
        "handshake_timeout_ns": _ns(settings.handshake_timeout_s),
        "decision_timeout_ns": _ns(settings.decision_timeout_s),
        "acknowledge_timeout_ns": _ns(settings.acknowledge_timeout_s),
        "handshakes_at_once": settings.handshakes_at_once,
        "buffer_budget": settings.buffer_budget,
        "flows_per_workload": settings.flows_per_workload,
        "questions_per_workload": settings.questions_per_workload,
        "flow_idle_ns": _ns(settings.flow_idle_s),
        "tls12": settings.tls12,
        "post_quantum": settings.post_quantum,
        "orig_src": -1 if settings.orig_src is None else int(settings.orig_src),
        "keepalive": sockets.keepalive,
        "keepalive_time_s": sockets.keepalive_time_s,
        "keepalive_interval_s": sockets.keepalive_interval_s,
        "keepalive_retries": sockets.keepalive_retries,
        "user_timeout": sockets.user_timeout,
        "has_mark": sockets.mark is not None,
        "mark": sockets.mark or 0,
        "port_reuse": sockets.port_reuse,
    }


def _start(verdict: Verdict) -> str:
    """The verdict's text, or as much as a log line is for."""
    return repr(verdict)[:1000]


def _ns(seconds: float) -> int:
    return round(seconds * _NS)
