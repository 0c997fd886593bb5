# SPDX-License-Identifier: Apache-2.0
"""Answers the engine's questions.

A question is decided at once if everything is known: the state is read, the verdict made and the
reply given in one turn of the loop, so a stale reply cannot exist. Otherwise a task waits for what
is missing (the local workload, its certificate) and decides afresh. Whatever goes wrong is a
denial.

A verdict may serve further connections for its `ttl_s`. That is 0 for what is true of this moment
only (something is missing, something failed) and where the decision said something to the log that
has to be said for each connection.
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
    from collections.abc import Iterable

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import DataPlane, Question
    from ztunnel_py.dataplane.certificates import Certificates
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.decide.verdict import Note
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import WorkloadInfo
    from ztunnel_py.tasks import Tasks

QUESTIONS_PER_TURN = 64
WORKLOAD_WAIT_S = 5.0
IDENTITY_TRIES = 3
"""The workload may have got another identity while its certificate was waited for."""

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
        self._last_known: dict[str, Workload] = {}

    def serve(self, workload: str, info: WorkloadInfo) -> None:
        """Names the workload that an engine's workload id stands for."""
        self._infos[workload] = info

    def workloads(self) -> list[str]:
        """The engine's workload ids that are served."""
        return list(self._infos)

    def decide(self, key: InboundKey | PassthroughKey) -> Verdict:
        """What would be said now of a connection that lives.

        If its workload is gone from the state, what was last known of it counts.
        """
        local = self._local(key.workload)
        return self._verdict(key, self._last_known.get(key.workload, local))

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
            await self._awaited(question.workload)
            self._reply(question, await self._decided(question))
        except Exception as error:  # as in `pump`
            self._deny_failed(question, error)

    async def _decided(self, question: Question) -> Verdict:
        """A verdict for which nothing is missing, or the refusal that says what was not to be had.

        It is of the turn of the loop in which this returns.
        """
        problem = "the workload's identity changes too often"
        for _ in range(IDENTITY_TRIES):
            local = self._local(question.workload)
            verdict = self._decide(question, local)
            if not isinstance(local, Workload) or self._is_complete(question, verdict, local):
                return verdict
            failure = await self._identify(question.workload, local)
            if failure is not None:
                problem = failure
                break
        verdict = self._decide(question, self._local(question.workload))
        return _unidentified(verdict, problem)

    def _decide(self, question: Question, local: Workload | WorkloadInfo) -> Verdict:
        epoch = self._plane.epoch()  # read first: whatever changes later makes the verdict stale
        return dataclasses.replace(self._verdict(question.key, local), epoch=epoch)

    def _verdict(
        self, key: OutboundKey | InboundKey | PassthroughKey | None, local: Workload | WorkloadInfo
    ) -> Verdict:
        match key:
            case OutboundKey():
                return outbound.decide(self._store, self._settings, key, local)
            case InboundKey():
                return inbound.decide(self._store, self._rulebook, self._settings, key, local)
            case PassthroughKey():
                return inbound.decide_passthrough(
                    self._store, self._rulebook, self._settings, key, local
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
        local = self._store.local_workload(info)
        if local is None:
            return info
        self._last_known[workload] = local
        return local

    async def _awaited(self, workload: str) -> None:
        """Returns when the local workload is known, or has not appeared in time."""
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

    def _reply(self, question: Question, verdict: Verdict) -> None:
        if _say(verdict.notes):
            verdict = dataclasses.replace(verdict, ttl_s=0.0)
        self._plane.reply(question.id, verdict)

    def _deny_failed(self, question: Question, error: Exception) -> None:
        stack = "".join(traceback.format_exception(error))
        log.error("a decision failed", {"key": repr(question.key), "stack": stack})
        denial = Verdict.deny(Reason.DECIDER_ERROR)
        self._plane.reply(question.id, dataclasses.replace(denial, epoch=self._plane.epoch()))


def _say(notes: Iterable[Note]) -> bool:
    """Logs what a decision has to say; false if nobody wants to read it."""
    said = [logger(note.target).say(note.level, note.message, note.fields) for note in notes]
    return any(said)


def _unidentified(verdict: Verdict, problem: str) -> Verdict:
    """The refusal of a connection whose workload has no certificate."""
    if verdict.action is not Action.FORWARD or not verdict.hops:
        reason = verdict.reason if verdict.reason is not Reason.OK else Reason.SIGNING
        return dataclasses.replace(
            verdict, action=Action.DENY, reason=reason, detail=problem, ttl_s=0.0
        )
    return dataclasses.replace(
        verdict,
        action=Action.DENY,
        reason=Reason.IDENTITY,
        detail=problem,
        hops=verdict.hops[:1],
        ttl_s=0.0,
    )
