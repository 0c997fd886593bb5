# SPDX-License-Identifier: Apache-2.0
"""An engine on loopback with a scripted decider: no privileges, no state, any engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.wait import DEADLINE_S, until
from ztunnel_py.dataplane.abc import (
    ListenAddress,
    QuestionKind,
    RecordKind,
    Role,
    WorkloadSpec,
)
from ztunnel_py.dataplane.counters import SlotCounts
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey
from ztunnel_py.decide.verdict import Action, Hop, HopProtocol, LogFields, TrafficLabels, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr, parse_ip

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.clock import FakeClock
    from tests.support.wire import Wire
    from ztunnel_py.dataplane.abc import (
        DataPlane,
        EngineSettings,
        Question,
        Record,
        Resolve,
    )
    from ztunnel_py.identity.certificates import WorkloadCertificate

WORKLOAD = "a"
CLIENT = Identity("cluster.local", "ns", "client")
SERVER = Identity("cluster.local", "ns", "server")
LOOPBACK = "127.0.0.1"
_LIFE = RecordKind.OPENED, RecordKind.CLOSED


def address(port: int, host: str = LOOPBACK) -> SockAddr:
    """A loopback address."""
    return SockAddr(parse_ip(host), port)


def forward(
    to: SockAddr,
    protocol: HopProtocol = HopProtocol.TCP,
    *,
    reporter: str = "source",
    authority: str = "",
    sans: tuple[Identity, ...] = (SERVER,),
    headers: tuple[tuple[str, str], ...] = (),
    forwarded_host: str = "",
    keep_source: bool = False,
) -> Verdict:
    """A verdict with one hop."""
    hop = Hop(
        protocol=protocol,
        address=to,
        labels=TrafficLabels(reporter=reporter),
        log=LogFields(),
        authority=authority,
        sans=sans if protocol is HopProtocol.HBONE else (),
        keep_source=keep_source,
    )
    return Verdict(Action.FORWARD, hops=(hop,), headers=headers, forwarded_host=forwarded_host)


def through(to: SockAddr, authority: str = "10.0.0.9:80", **more: object) -> Verdict:
    """A verdict to an HBONE server."""
    return forward(to, HopProtocol.HBONE, authority=authority, **more)  # type: ignore[arg-type]


def inbound_key(question: Question) -> InboundKey:
    """The key of a question about a stream."""
    assert isinstance(question.key, InboundKey)
    return question.key


def captured_key(question: Question) -> OutboundKey | PassthroughKey:
    """The key of a question about a captured connection."""
    assert isinstance(question.key, OutboundKey | PassthroughKey)
    return question.key


_UNNAMED = Verdict.deny(Reason.NO_SERVICE)


class Plane:
    """One engine with one workload, its questions answered by `decide`, its records kept."""

    def __init__(
        self,
        engine: DataPlane,
        clock: FakeClock,
        settings: EngineSettings,
        certificate: WorkloadCertificate | None,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.certificate = certificate
        self.settings = settings
        self.records: list[Record] = []
        self.questions: list[Question] = []
        self.expected_internal_errors = 0
        self.decide: Callable[[Question], Verdict | None] = lambda _: None
        """Answers a question; None leaves it open."""
        self.name_remote: Callable[[Question], Verdict | None] = lambda _: _UNNAMED
        """The same for who answered at the end of an inner tunnel."""
        self._ports: dict[tuple[str, Role], SockAddr] = {}

    async def start(self, host: str = LOOPBACK, *, serve: bool = True) -> None:
        """Binds the four listeners on ports of the kernel's choice, and serves."""
        self.engine.start(self.settings)
        self.add(WORKLOAD, host, serve=serve)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.engine.question_fd, self._answer)
        loop.add_reader(self.engine.record_fd, self._collect)

    def add(
        self,
        workload: str,
        host: str = LOOPBACK,
        *,
        serve: bool = True,
        resolve: Resolve | None = None,
    ) -> None:
        """One more local workload."""
        listeners = tuple(ListenAddress(role, host, 0) for role in Role)
        ports = self.engine.workload_add(WorkloadSpec(workload, listeners, resolve=resolve))
        self._ports |= {(workload, role): address for role, address in ports.items()}
        if serve:
            self.engine.workload_serve(workload)

    def port(self, role: Role, workload: str = WORKLOAD) -> SockAddr:
        """Where a listener of the engine is."""
        return self._ports[workload, role]

    def answer(self, verdict: Verdict) -> None:
        """Answers every question about a flow that was left open."""
        for question in self.flows:
            self.engine.reply(question.id, verdict)

    def advance(self, seconds: float) -> None:
        """Moves the engine's time."""
        self.clock.advance(seconds)

    async def pass_time(self, seconds: float, *tunnels: Wire) -> None:
        """Moves the engine's time as it passes when the other ends answer their PINGs."""
        while seconds > 0:
            step = min(seconds, self.settings.ping_interval_s)
            self.advance(step)
            seconds -= step
            for tunnel in tunnels:
                await tunnel.fence()

    # --- looking

    @property
    def counts(self) -> SlotCounts:
        """The counters of the only label set so far; zeros if there is none."""
        slots = list(self.engine.slots().values())
        assert len(slots) <= 1
        return slots[0] if slots else SlotCounts()

    def event(self, name: str) -> int:
        """An event counter."""
        return self.engine.events().get(name, 0)

    def sockets_open(self, side: str) -> int:
        """The gauge `istio_tcp_sockets_open` of a reporter, `source` or `destination`."""
        return self.event(f"sockets_opened_{side}") - self.event(f"sockets_closed_{side}")

    async def asked(self, count: int = 1) -> Question:
        """The `count`-th question about a flow, waited for."""
        await until(lambda: len(self.flows) >= count, f"{count} questions")
        return self.flows[count - 1]

    @property
    def flows(self) -> list[Question]:
        """Questions so far about where connections go."""
        others = (QuestionKind.IDENTITY, QuestionKind.REMOTE)
        return [one for one in self.questions if one.kind not in others]

    async def closed(self, count: int = 1) -> Record:
        """The `count`-th `connection complete`, waited for."""
        return await self.record(RecordKind.CLOSED, count)

    async def denied(self, count: int = 1) -> Record:
        """The `count`-th `connection failed`, waited for."""
        return await self.record(RecordKind.DENIED, count)

    async def record(self, kind: RecordKind, count: int = 1) -> Record:
        """The `count`-th record of a kind, waited for."""
        await until(lambda: len(self.of(kind)) >= count, f"{count} records {kind.value!r}")
        return self.of(kind)[count - 1]

    def of(self, kind: RecordKind) -> list[Record]:
        """Records of one kind so far."""
        return [record for record in self.records if record.kind is kind]

    async def stop(self) -> None:
        """Ends everything; nothing may live afterwards."""
        loop = asyncio.get_running_loop()
        for fd in (self.engine.question_fd, self.engine.record_fd):
            loop.remove_reader(fd)
        await asyncio.wait_for(self.engine.stop(), DEADLINE_S)
        self._collect()
        assert not any(self.engine.debug_counts().values()), self.engine.debug_counts()
        assert self.event("internal_errors") == self.expected_internal_errors
        assert self.event("punted") == 0, "an engine serves what it accepts"
        assert self.event("records_lost") == self.event("counts_lost") == 0
        assert not self.sockets_open("source")
        assert not self.sockets_open("destination")
        opened, closed = ([one.conn for one in self.of(kind)] for kind in _LIFE)
        assert sorted(opened) == sorted(closed), "each opened connection has one ending"

    def _collect(self) -> None:
        self.records.extend(self.engine.recv_records(1000))

    def _answer(self) -> None:
        for question in self.engine.recv_questions(64):
            self.questions.append(question)
            if question.kind is QuestionKind.IDENTITY:
                verdict: Verdict | None = self._identify(question.workload)
            elif question.kind is QuestionKind.REMOTE:
                verdict = self.name_remote(question)
            else:
                verdict = self.decide(question)
            if verdict is not None:
                self.engine.reply(question.id, verdict)

    def _identify(self, workload: str) -> Verdict:
        if self.certificate is None:
            return Verdict.deny(Reason.SIGNING, "no certificate")
        self.engine.identity_set(workload, self.certificate)
        return Verdict(Action.FORWARD)


if TYPE_CHECKING:
    Planes = Callable[..., Awaitable[Plane]]
