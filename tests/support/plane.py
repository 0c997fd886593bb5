# SPDX-License-Identifier: Apache-2.0
"""An engine on loopback with a scripted decider: no privileges, no state, any engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.wait import DEADLINE_S, until
from ztunnel_py.dataplane.abc import (
    ListenAddress,
    QuestionKind,
    Role,
    WorkloadSpec,
)
from ztunnel_py.decide.verdict import Action, Hop, HopProtocol, LogFields, TrafficLabels, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr, parse_ip

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.clock import FakeClock
    from ztunnel_py.dataplane.abc import (
        DataPlane,
        EngineSettings,
        Question,
        Record,
        RecordKind,
    )
    from ztunnel_py.identity.certificates import WorkloadCertificate

WORKLOAD = "a"
CLIENT = Identity("cluster.local", "ns", "client")
SERVER = Identity("cluster.local", "ns", "server")
LOOPBACK = "127.0.0.1"


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
        self.decide: Callable[[Question], Verdict | None] = lambda _: None
        """Answers a question; None leaves it open."""
        self._ports: dict[Role, SockAddr] = {}

    async def start(self, host: str = LOOPBACK, *, serve: bool = True) -> None:
        """Binds the four listeners on ports of the kernel's choice, and serves."""
        self.engine.start(self.settings)
        listeners = tuple(ListenAddress(role, host, 0) for role in Role)
        self._ports = dict(self.engine.workload_add(WorkloadSpec(WORKLOAD, listeners)))
        loop = asyncio.get_running_loop()
        loop.add_reader(self.engine.question_fd, self._answer)
        loop.add_reader(self.engine.record_fd, self._collect)
        if serve:
            self.engine.workload_serve(WORKLOAD)

    def port(self, role: Role) -> SockAddr:
        """Where a listener of the engine is."""
        return self._ports[role]

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

    def _collect(self) -> None:
        self.records.extend(self.engine.recv_records(1000))

    def _answer(self) -> None:
        for question in self.engine.recv_questions(64):
            self.questions.append(question)
            if question.kind is QuestionKind.IDENTITY:
                verdict: Verdict | None = self._identify()
            else:
                verdict = self.decide(question)
            if verdict is not None:
                self.engine.reply(question.id, verdict)

    def _identify(self) -> Verdict:
        if self.certificate is None:
            return Verdict.deny(Reason.SIGNING, "no certificate")
        self.engine.identity_set(WORKLOAD, self.certificate)
        return Verdict(Action.FORWARD)
