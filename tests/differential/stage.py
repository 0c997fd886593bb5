# SPDX-License-Identifier: Apache-2.0
"""Plays a scenario on one engine and writes down what is seen."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, assert_never

from tests.differential import trace
from tests.differential.ends import StreamEnd, TcpEnd
from tests.differential.scenario import (
    Answer,
    Drain,
    End,
    Goodbye,
    Grant,
    HangUp,
    Kill,
    Outcome,
    Pass,
    Reset,
    Resize,
    Respond,
    Send,
    Way,
)
from tests.differential.trace import Trace
from tests.support.clock import FakeClock
from tests.support.engines import make_engine
from tests.support.frames import CANCEL, INITIAL_WINDOW
from tests.support.net import Net
from tests.support.plane import CLIENT, SERVER, Plane, address, forward, through
from ztunnel_py.dataplane.abc import DrainMode, EngineSettings, Role
from ztunnel_py.dataplane.native import NativeEngine
from ztunnel_py.decide.verdict import Preface, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.differential.ends import EndPoint
    from tests.differential.scenario import Scenario, Step
    from tests.support.apps import App
    from tests.support.wire import Wire, WireServer
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.state.address import SockAddr

OTHER = Identity("cluster.local", "ns", "other")
_HEADERS = (("baggage", "k8s.namespace.name=ns"), ("x-more", "of it"))
_QUIET_ROUNDS = 3
_ROUND_S = 0.001
_MANY_ROUNDS = 2000


class Stage:
    """One engine, one connection, and its surroundings."""

    def __init__(
        self,
        scenario: Scenario,
        engine_name: str,
        certify: Callable[[Identity], WorkloadCertificate],
        patience: int,
    ) -> None:
        clock = FakeClock()
        self._scenario = scenario
        self._window = scenario.our_window
        self._is_native = engine_name == "native"
        self._is_inbound = scenario.way.is_near_a_stream
        identity = SERVER if self._is_inbound else CLIENT
        settings = EngineSettings(stream_window=scenario.our_window)
        engine = make_engine(engine_name, clock)
        self._plane = Plane(engine, clock, settings, certify(identity))
        self._net = Net(certify)
        self._patience = patience
        self._near: EndPoint | None = None
        self._far: EndPoint | None = None
        self._app: App | None = None
        self._server: WireServer | None = None
        self._target: SockAddr
        self._is_draining = False

    async def play(self) -> Trace:
        """Everything, to the end."""
        found = Trace()
        await self._plane.start()
        try:
            await self._prepare()
            await self._arrive()
            await self._look(found, "arrived")
            for step in self._scenario.steps:
                await self._take(step)
                await self._look(found, str(step))
            await self._finish(found)
        finally:
            self._net.close()
            await self._plane.stop()
        await self._sum_up(found)
        return found

    # --- surroundings

    async def _prepare(self) -> None:
        outcome, way = self._scenario.outcome, self._scenario.way
        if outcome is Outcome.HANGS:
            self._target = self._net.hole()
        elif way.is_far_a_stream and outcome is not Outcome.REFUSED:
            identity = OTHER if outcome is Outcome.IMPOSTOR else SERVER
            settings = {INITIAL_WINDOW: self._scenario.window}
            self._server = await self._net.server(identity, settings, responds=None)
            self._target = self._server.address
        else:
            self._app = await self._net.app()
            self._target = self._app.address
            if outcome is Outcome.REFUSED:
                self._app.close()

    async def _arrive(self) -> None:
        if self._is_inbound:
            settings = {INITIAL_WINDOW: self._scenario.window}
            wire = await self._net.tunnel(self._plane, settings=settings)
            self._near = StreamEnd(
                wire, wire.connect(*self._scenario.headers), self._window, is_server=False
            )
            return
        is_plaintext = self._scenario.way is Way.PLAINTEXT
        role = Role.PASSTHROUGH if is_plaintext else Role.OUTBOUND
        self._near = TcpEnd(await self._net.dial(self._plane.port(role)))

    def _verdict(self) -> Verdict:
        outcome, reporter = self._scenario.outcome, "destination"
        if self._scenario.way in (Way.OUTBOUND_HBONE, Way.OUTBOUND_TCP):
            reporter = "source"
        if self._scenario.way.is_far_a_stream:
            verdict = through(self._target, forwarded_host="web.shop")
        else:
            verdict = forward(self._target, reporter=reporter)
        match outcome:
            case Outcome.DENIED_EARLY:
                return Verdict.deny(Reason.UNKNOWN_HOST, "nobody")
            case Outcome.DENIED_BY_POLICY:
                return Verdict.deny(Reason.POLICY_DENIED, "by a/b", verdict.hops[0])
            case Outcome.WITH_HEADERS:
                return dataclasses.replace(verdict, headers=_HEADERS)
            case Outcome.WITH_PREFACE:
                return dataclasses.replace(verdict, preface=Preface(address(8080, "10.0.0.9")))
            case _:
                return verdict

    # --- steps

    async def _take(self, step: Step) -> None:
        match step:
            case Answer():
                verdict = self._verdict()
                self._plane.decide = lambda _: verdict
                self._plane.answer(verdict)
            case Respond():
                if isinstance(self._far, StreamEnd):
                    self._far.respond(step.status)
            case Pass():
                for _ in range(step.tens_of_seconds):
                    self._plane.advance(10)
                    await self._quiet()
            case Kill():
                live = [view.id for view in self._plane.engine.connections()]
                self._plane.engine.conn_kill(live, Reason.POLICY_CHANGED)
            case Drain():
                mode = DrainMode.IMMEDIATE if step.is_immediate else DrainMode.GRACEFUL
                self._plane.engine.drain(None, mode)
            case Send() | End() | Reset() | Grant() | Resize() | Goodbye() | HangUp():
                ends = (self._near, self._far) if step.side == "near" else (self._far, self._near)
                if isinstance(step, Reset):
                    self._note_losses(*ends)
                if (end := ends[0]) is not None:
                    _move(end, step)
            case _:
                assert_never(step)

    def _note_losses(self, end: EndPoint | None, other: EndPoint | None) -> None:
        if isinstance(end, TcpEnd):
            arrived = 0 if other is None else len(other.received)
            end.may_have_lost = end.may_have_lost or end.sent > arrived

    async def _finish(self, found: Trace) -> None:
        """Both ends end; who is not let go then breaks it off."""
        for name in ("near", "far"):
            end = self._near if name == "near" else self._far
            if end is not None:
                end.grant(1 << 20)
                end.send(0, 0, is_last=True)
                await self._look(found, f"{name} ends")
        if self._near is not None:
            self._note_losses(self._near, self._far)
            self._near.reset(CANCEL)
            await self._look(found, "near breaks off")

    # --- looking

    @property
    def _wire(self) -> Wire | None:
        return self._server.tunnels[0] if self._server and self._server.tunnels else None

    def _find_far(self) -> None:
        if self._far is not None:
            return
        if self._app is not None and self._app.accepted:
            self._far = TcpEnd(self._app.accepted[0])
        elif self._wire is not None and self._wire.headers:
            self._far = StreamEnd(self._wire, min(self._wire.headers), self._window, is_server=True)

    def _state(self) -> tuple[object, ...]:
        self._find_far()
        views = self._plane.engine.connections()
        return (
            trace.seen("near", self._near, self._far),
            trace.seen("far", self._far, self._near),
            len(self._near.headers) if isinstance(self._near, StreamEnd) else 0,
            len(self._plane.records),
            len(self._plane.questions),
            self._server.accepted if self._server else 0,
            [(view.upstream_bytes, view.downstream_bytes) for view in views],
            len(self._plane.engine.tunnels()),
            tuple(sorted(self._plane.engine.events().items())),
        )

    async def _quiet(self) -> None:
        """Returns when nothing more happens by itself."""
        before, same = self._state(), 0
        for _ in range(_MANY_ROUNDS):
            engine = self._plane.engine
            if isinstance(engine, NativeEngine):
                engine._core.fence()
            for _ in range(4):
                await asyncio.sleep(0)
            await asyncio.sleep(_ROUND_S * self._patience)
            state = self._state()
            same = same + 1 if state == before else 0
            before = state
            if same >= _QUIET_ROUNDS * self._patience:
                return
        raise AssertionError("it does not come to rest")

    async def _look(self, found: Trace, label: str) -> None:
        await self._quiet()
        facts = [
            trace.seen("near", self._near, self._far),
            trace.seen("far", self._far, self._near),
        ]
        if isinstance(self._near, StreamEnd):
            facts.append(f"response {trace.headers(self._near.headers)!r}")
        if isinstance(self._far, StreamEnd):
            facts.append(f"request {trace.headers(self._far.headers)!r}")
        facts.append(f"live {len(self._plane.engine.connections())}")
        facts += [f"{one.kind.value}: {one.reason.name}" for one in self._plane.records]
        found.add(label, *facts)

    async def _sum_up(self, found: Trace) -> None:
        engine, events = self._plane.engine, self._plane.engine.events()
        records = [trace.record(one, self._near, self._far) for one in self._plane.records]
        found.add("records", *records)
        found.add("slots", trace.slots(engine.slots(), self._near, self._far))
        found.add("events", str({name: events.get(name, 0) for name in trace.EVENTS}))
        keys = [repr(question.key) for question in self._plane.flows]
        found.add("questions", str(len(keys)))
        if isinstance(self._far, StreamEnd) and self._wire is not None:
            found.add("presented", str(self._wire.names))


def _move(end: EndPoint, step: Send | End | Reset | Grant | Resize | Goodbye | HangUp) -> None:
    match step:
        case Send():
            end.send(step.length, step.padding, is_last=False)
        case End():
            end.send(step.length, 0, is_last=True)
        case Reset():
            end.reset(step.code)
        case Grant():
            end.grant(step.length)
        case Resize():
            end.resize(step.window)
        case Goodbye():
            end.goodbye(includes_stream=step.includes_stream)
        case HangUp():
            end.hang_up()
        case _:
            assert_never(step)
