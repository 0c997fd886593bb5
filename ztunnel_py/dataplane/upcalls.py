# SPDX-License-Identifier: Apache-2.0
"""Answers the engine's questions.

A question is decided at once if everything is known: the state is read, the verdict made and the
reply given in one turn of the loop, so a stale reply cannot exist. Otherwise a task waits for what
is missing (the local workload, its certificate) and decides afresh. Whatever goes wrong is a
denial.
"""

from __future__ import annotations

import asyncio
import dataclasses
import traceback
from typing import TYPE_CHECKING

from ztunnel_py.clock import within
from ztunnel_py.dataplane.abc import QuestionKind
from ztunnel_py.decide import inbound, outbound
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.verdict import Action, HopProtocol, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.workload import Workload
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import DataPlane, Question
    from ztunnel_py.dataplane.certificates import Certificates
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import WorkloadInfo
    from ztunnel_py.tasks import Tasks

QUESTIONS_PER_TURN = 64
WORKLOAD_WAIT_S = 5.0

log = logger("ztunnel::proxy")


class Upcalls:
    """Decides for one engine."""

    def __init__(
        self,
        plane: DataPlane,
        store: Store,
        settings: Settings,
        certificates: Certificates,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._plane = plane
        self._store = store
        self._settings = settings
        self._rulebook = Rulebook(store)
        self._certificates = certificates
        self._clock = clock
        self._tasks = tasks
        self._infos: dict[str, WorkloadInfo] = {}

    def serve(self, workload: str, info: WorkloadInfo) -> None:
        """Names the workload that an engine's workload id stands for."""
        self._infos[workload] = info

    def start(self) -> None:
        """Answers from now on; certificates are fetched before anybody has to wait for them."""
        asyncio.get_running_loop().add_reader(self._plane.question_fd, self.pump)
        for workload in self._infos:
            self._tasks.spawn(self._warm_up(workload))

    def stop(self) -> None:
        """Answers no more."""
        asyncio.get_running_loop().remove_reader(self._plane.question_fd)

    def pump(self) -> None:
        """Takes a bounded number of questions, so that nothing else on the loop starves."""
        for question in self._plane.recv_questions(QUESTIONS_PER_TURN):
            try:
                self._take(question)
            except Exception as error:  # a decision that fails lets nothing in
                self._deny_failed(question, error)

    def _take(self, question: Question) -> None:
        local = self._local(question.workload)
        verdict = self._decide(question, local)
        if self._is_complete(question, verdict, local):
            self._reply(question, verdict)
        else:
            self._tasks.spawn(self._complete(question))

    async def _complete(self, question: Question) -> None:
        try:
            local = await self._awaited(question.workload)
            problem = None
            verdict = self._decide(question, local)
            if isinstance(local, Workload) and not self._is_complete(question, verdict, local):
                problem = await self._identify(question.workload, local)
                verdict = self._decide(question, self._local(question.workload))
            self._reply(question, verdict if problem is None else _unidentified(verdict, problem))
        except Exception as error:  # as in `pump`
            self._deny_failed(question, error)

    def _decide(self, question: Question, local: Workload | WorkloadInfo) -> Verdict:
        match question.key:
            case OutboundKey():
                return outbound.decide(self._store, self._settings, question.key, local)
            case InboundKey():
                return inbound.decide(
                    self._store, self._rulebook, self._settings, question.key, local
                )
            case PassthroughKey():
                return inbound.decide_passthrough(
                    self._store, self._rulebook, self._settings, question.key, local
                )
            case None:
                if isinstance(local, Workload):
                    return Verdict(Action.FORWARD)
                return Verdict.deny(Reason.UNKNOWN_WORKLOAD, str(local))

    def _is_complete(
        self, question: Question, verdict: Verdict, local: Workload | WorkloadInfo
    ) -> bool:
        """Nothing has to be waited for. A verdict names only identities that the engine has."""
        if verdict.reason is Reason.UNKNOWN_WORKLOAD:
            return False
        needs_certificate = question.kind is QuestionKind.IDENTITY or any(
            hop.protocol is not HopProtocol.TCP
            for hop in verdict.hops
            if question.kind is QuestionKind.OUTBOUND
        )
        if not needs_certificate or not isinstance(local, Workload):
            return True
        return self._certificates.has(question.workload, self._identity(question.workload, local))

    async def _identify(self, workload: str, local: Workload) -> str | None:
        """Provides the certificate; returns what is wrong if there is none."""
        try:
            await self._certificates.provide(workload, self._identity(workload, local))
        except IdentityError as error:
            return str(error)
        return None

    def _identity(self, workload: str, local: Workload) -> Identity:
        """The workload's trust domain with the namespace and account the proxy was given."""
        info = self._infos[workload]
        return Identity(local.trust_domain, info.namespace, info.service_account)

    async def _warm_up(self, workload: str) -> None:
        local = self._local(workload)
        if isinstance(local, Workload):
            await self._identify(workload, local)  # a failure is told to the connection it fails

    def _local(self, workload: str) -> Workload | WorkloadInfo:
        info = self._infos[workload]
        return self._store.local_workload(info) or info

    async def _awaited(self, workload: str) -> Workload | WorkloadInfo:
        """The local workload, waited for; only its name if it does not appear."""
        appeared: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(_: object = None) -> None:
            if isinstance(self._local(workload), Workload) and not appeared.done():
                appeared.set_result(None)

        unsubscribe = self._store.subscribe(look)
        look()
        try:
            await within(self._clock, WORKLOAD_WAIT_S, appeared)
        except TimeoutError:
            log.warn(f"timed out waiting for workload {self._infos[workload]}")
        finally:
            unsubscribe()
        return self._local(workload)

    def _reply(self, question: Question, verdict: Verdict) -> None:
        for note in verdict.notes:
            getattr(logger(note.target), note.level)(note.message, note.fields)
        epoch = self._plane.epoch()
        self._plane.reply(question.id, dataclasses.replace(verdict, epoch=epoch))

    def _deny_failed(self, question: Question, error: Exception) -> None:
        stack = "".join(traceback.format_exception(error))
        log.error("a decision failed", {"key": repr(question.key), "stack": stack})
        self._plane.reply(question.id, Verdict.deny(Reason.DECIDER_ERROR))


def _unidentified(verdict: Verdict, problem: str) -> Verdict:
    """The refusal of a connection whose workload has no certificate."""
    if verdict.action is not Action.FORWARD or not verdict.hops:
        reason = verdict.reason if verdict.reason is not Reason.OK else Reason.SIGNING
        return dataclasses.replace(verdict, action=Action.DENY, reason=reason, detail=problem)
    return dataclasses.replace(
        verdict,
        action=Action.DENY,
        reason=Reason.IDENTITY,
        detail=problem,
        hops=verdict.hops[:1],
    )
