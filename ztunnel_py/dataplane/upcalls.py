# SPDX-License-Identifier: Apache-2.0
"""Answers the engine's questions.

A question is decided at once if everything is known: the state is read, the verdict made and the
reply given in one turn of the loop, so a stale reply cannot exist. Otherwise a task waits for what
is missing (the local workload, something that is asked for on demand, its certificate, the address
of a hostname) and decides afresh. Whatever goes wrong is a denial.

A verdict may serve further connections for its `ttl_s`. That is 0 for what is true of this moment
only (something is missing, something failed) and where the decision said something to the log that
has to be said for each connection.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import traceback
from typing import TYPE_CHECKING, Protocol

from ztunnel_py.clock import within
from ztunnel_py.dataplane.abc import QuestionKind
from ztunnel_py.decide import inbound, labels, lookup, outbound
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey, RemoteKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.refusal import Refused
from ztunnel_py.decide.verdict import Action, HopProtocol, Verdict
from ztunnel_py.errors import LookupFailedError, Reason
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.misses import Misses
from ztunnel_py.state.workload import Workload, WorkloadInfo
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import DataPlane, Question
    from ztunnel_py.dataplane.certificates import Certificates
    from ztunnel_py.decide.key import Key
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.decide.verdict import Hop, Note
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.store import Store
    from ztunnel_py.tasks import Tasks

QUESTIONS_PER_TURN = 64
WORKLOAD_WAIT_S = 5.0
FETCH_ROUNDS = 8
"""What was fetched may refer to what has to be fetched: a service to its waypoint, and so on."""
IDENTITY_TRIES = 3
"""The workload may have got another identity while its certificate was waited for."""
LOOKUP_TRIES = 3
"""The hop may have gone while its address was looked up."""

_NOBODY = WorkloadInfo("", "", "")
"""Whom the id of a pod that is gone stands for, while questions about it are on their way."""

log = logger("ztunnel::proxy")


class Names(Protocol):
    """Who looks up hostnames for connections; dns/on_demand.py."""

    async def addresses(self, source: tuple[str, ...], hostname: str) -> tuple[Ip, ...]:
        """The addresses of `hostname`; `source` are the client's labels.

        Raises:
            LookupFailedError: they cannot be told.
        """


class OnDemand(Protocol):
    """Who can be asked for what the store does not know; xds/on_demand.py."""

    async def fetch(self, names: Collection[str]) -> None:
        """Returns when all there is to know of `names` is in the store.

        Raises:
            TimeoutError: that takes too long.
        """


class Upcalls:
    """Decides for one engine; `on_demand` is asked for what is missing, if there is somebody."""

    def __init__(
        self,
        plane: DataPlane,
        store: Store,
        settings: Settings,
        certificates: Certificates,
        names: Names,
        clock: Clock,
        tasks: Tasks,
        on_demand: OnDemand | None = None,
    ) -> None:
        self._plane = plane
        self._store = store
        self._settings = settings
        self._rulebook = Rulebook(store)
        self._certificates = certificates
        self._names = names
        self._random = random.Random()  # noqa: S311 - balances load
        self._clock = clock
        self._tasks = tasks
        self._on_demand = on_demand
        self._infos: dict[str, WorkloadInfo] = {}
        self._own_settings: dict[str, Settings] = {}
        self._last_known: dict[str, Workload] = {}

    def serve(self, workload: str, info: WorkloadInfo, settings: Settings | None = None) -> None:
        """Names the workload that an engine's workload id stands for, with settings of its own."""
        self._infos[workload] = info
        if settings is not None:
            self._own_settings[workload] = settings

    def forget(self, workload: str) -> None:
        """That id stands for nobody any more; questions that are open for it are denied."""
        self._infos.pop(workload, None)
        self._own_settings.pop(workload, None)
        self._last_known.pop(workload, None)
        self._certificates.forget(workload)

    def workloads(self) -> list[str]:
        """The engine's workload ids that are served."""
        return list(self._infos)

    def decide(self, key: InboundKey | PassthroughKey) -> Verdict:
        """What would be said now of a connection that lives.

        If its workload is gone from the state, what was last known of it counts.
        """
        local = self._local(key.workload)
        return self._verdict(key, self._last_known.get(key.workload, local), self._store)

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
        is_complete = self._is_complete(question, verdict, local) and not verdict.looks_up
        if is_complete and not self._missing(question):
            self._reply(question, verdict)
        else:
            self._tasks.spawn(self._complete(question))

    async def _complete(self, question: Question) -> None:
        try:
            await self._awaited(question.workload)
            await self._fetched(question)
            self._reply(question, await self._located(question))
        except TimeoutError as error:
            denial = Verdict.deny(Reason.DECISION_TIMEOUT, str(error))
            self._reply(question, dataclasses.replace(denial, epoch=self._plane.epoch()))
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

    async def _located(self, question: Question) -> Verdict:
        """A verdict as of `_decided`, and all its hops have addresses.

        If some have a hostname only, one hop is drawn, and is looked up if it is one of them. Such
        a verdict is for one connection: the next one counts as a lookup of its own.
        """
        for _ in range(LOOKUP_TRIES):
            verdict = await self._decided(question)
            if not verdict.looks_up:
                return verdict
            weights = [hop.weight for hop in verdict.hops]
            (hop,) = self._random.choices(verdict.hops, weights)
            if hop.lookup is None:
                return _only(verdict, hop)
            source = self._source_labels(question.workload)
            try:
                ips = await self._names.addresses(source, hop.lookup.hostname)
                verdict = await self._decided(question)
                if hop in verdict.hops:
                    return _only(verdict, lookup.located(hop, ips, self._random.choice))
            except LookupFailedError:
                return _refusal(verdict, Reason.LOOKUP_FAILED, hop.lookup.workload)
            except Refused as refused:
                return _refusal(verdict, refused.reason, refused.detail)
        return _refusal(verdict, Reason.LOOKUP_FAILED, "its endpoints change too often")

    def _source_labels(self, workload: str) -> tuple[str, ...]:
        local = self._local(workload)
        assert isinstance(local, Workload)  # whoever has hops is known
        return labels.known(local, local.identity)[:8]

    async def _fetched(self, question: Question) -> None:
        """Returns when nothing is missing any more that could be asked for.

        Raises:
            TimeoutError: there is no answer, or answers only lead to further questions.
        """
        asked: set[str] = set()
        for _ in range(FETCH_ROUNDS):
            missing = self._missing(question) - asked
            if not missing or self._on_demand is None:
                return
            asked |= missing
            await self._on_demand.fetch(missing)
        raise TimeoutError(f"{FETCH_ROUNDS} rounds of questions to the control plane")

    def _missing(self, question: Question) -> set[str]:
        """Names that the decision looks for in vain, if somebody can be asked for them."""
        if self._on_demand is None:
            return set()
        seen = Misses(self._store)
        self._verdict(question.key, self._local(question.workload), seen)
        return seen.names

    def _decide(self, question: Question, local: Workload | WorkloadInfo) -> Verdict:
        epoch = self._plane.epoch()  # read first: whatever changes later makes the verdict stale
        return dataclasses.replace(self._verdict(question.key, local, self._store), epoch=epoch)

    def _verdict(self, key: Key | None, local: Workload | WorkloadInfo, store: Store) -> Verdict:
        settings = self._settings
        if key is not None:
            settings = self._own_settings.get(key.workload, settings)
        match key:
            case OutboundKey():
                return outbound.decide(store, settings, key, local)
            case InboundKey():
                return inbound.decide(store, self._rulebook, settings, key, local)
            case PassthroughKey():
                return inbound.decide_passthrough(store, self._rulebook, settings, key, local)
            case RemoteKey():
                return outbound.decide_remote(store, settings, key, local)
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
        info = self._infos.get(workload, _NOBODY)
        return Identity(local.trust_domain, info.namespace, info.service_account)

    async def _warm_up(self, workload: str) -> None:
        local = self._local(workload)
        if isinstance(local, Workload):
            await self._identify(workload, local)  # a failure is told to the connection it fails

    def _local(self, workload: str) -> Workload | WorkloadInfo:
        info = self._infos.get(workload, _NOBODY)
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
            log.warn(f"timed out waiting for workload {self._infos.get(workload, _NOBODY)}")
        finally:
            unsubscribe()

    def _reply(self, question: Question, verdict: Verdict) -> None:
        if _say(verdict.notes):
            verdict = dataclasses.replace(verdict, ttl_s=0.0)
        assert not verdict.looks_up, "a hop without address"
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


def _only(verdict: Verdict, hop: Hop) -> Verdict:
    """`verdict` for one connection that takes `hop`."""
    return dataclasses.replace(verdict, hops=(hop,), looks_up=False, ttl_s=0.0)


def _refusal(verdict: Verdict, reason: Reason, detail: str) -> Verdict:
    """The early refusal of the connection that `verdict` let through; for that one only."""
    return dataclasses.replace(
        verdict,
        action=Action.DENY,
        reason=reason,
        detail=detail,
        hops=(),
        looks_up=False,
        ttl_s=0.0,
    )


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
        looks_up=False,
        ttl_s=0.0,
    )
