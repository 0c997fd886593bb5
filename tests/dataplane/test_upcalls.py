# SPDX-License-Identifier: Apache-2.0
"""Questions are answered from the state, after what is missing has come, or with a denial."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.state.build import pod, policy, service
from tests.support.clock import FakeClock
from tests.support.wait import settle, until
from ztunnel_py.dataplane import epochs
from ztunnel_py.dataplane.abc import Question, QuestionKind
from ztunnel_py.dataplane.certificates import Certificates
from ztunnel_py.dataplane.upcalls import QUESTIONS_PER_TURN, Upcalls
from ztunnel_py.decide.key import InboundKey, OutboundKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import FORWARD_TTL_S, Action, Epoch, HopProtocol
from ztunnel_py.dns.on_demand import OnDemandDns
from ztunnel_py.errors import LookupFailedError, Reason
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.manager import SecretManager
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.store import Store, WorkloadRemoval
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ztunnel_py.dataplane.abc import DataPlane
    from ztunnel_py.dataplane.upcalls import OnDemand
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.store import WorkloadUpdate

    Key = OutboundKey | InboundKey

STATE = """
workloads:
  - {uid: c//Pod/ns/a, name: a, namespace: ns, serviceAccount: a, trustDomain: td, protocol: HBONE,
     workloadIps: [10.0.0.1], services: {}}
  - {uid: c//Pod/ns/b, name: b, namespace: ns, serviceAccount: b, trustDomain: td, protocol: HBONE,
     workloadIps: [10.0.0.2], services: {}}
"""
A = WorkloadInfo("a", "ns", "a")
TO_A = InboundKey(
    "w", SockAddr.parse("10.0.0.1:1").ip, SockAddr.parse("10.0.0.2:1").ip, None, "10.0.0.1:80"
)
TO_B = OutboundKey("w", SockAddr.parse("10.0.0.1:1").ip, SockAddr.parse("10.0.0.2:80"))
TO_NAMED = OutboundKey("w", SockAddr.parse("10.0.0.1:1").ip, SockAddr.parse("10.1.0.1:80"))
TO_NOBODY = OutboundKey("w", SockAddr.parse("10.0.0.1:1").ip, SockAddr.parse("192.0.2.1:80"))


class ScriptedPlane:
    """The side of the engine that asks."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.answers: dict[int, Verdict] = {}
        self.identities: list[str] = []
        self.question_fd = -1
        self._epoch = Epoch(7, 3)

    def ask(self, key: Key | None, kind: QuestionKind = QuestionKind.OUTBOUND) -> int:
        """Queues a question; returns its id."""
        number = len(self.asked) + len(self.answers) + 1000 * len(self.asked)
        self.asked.append(Question(number, kind, "w", key))
        return number

    def recv_questions(self, limit: int) -> list[Question]:
        """As the contract."""
        taken, self.asked = self.asked[:limit], self.asked[limit:]
        return taken

    def reply(self, question: int, verdict: Verdict) -> None:
        """As the contract; a second answer is a mistake."""
        assert question not in self.answers
        self.answers[question] = verdict

    def epoch(self) -> Epoch:
        """As the contract."""
        return self._epoch

    def epoch_bump(self, *, discovery: bool = False, policy: bool = False) -> None:
        """As the contract."""
        self._epoch = Epoch(self._epoch.discovery + discovery, self._epoch.policy + policy)

    def identity_set(self, workload: str, certificate: WorkloadCertificate) -> None:
        """As the contract."""
        self.identities.append(str(certificate.identity))


class Authority:
    """Issues the run's certificates, or fails."""

    def __init__(self, certify: Callable[[Identity], WorkloadCertificate]) -> None:
        self.certify = certify
        self.calls = 0
        self.is_down = False
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """As `CertificateAuthority`."""
        self.calls += 1
        await self.is_open.wait()
        if self.is_down:
            raise IdentityError("the authority is down")
        return self.certify(identity)


class Dns:
    """Knows the addresses of names, when it is let."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Ip, ...]] = {}
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def addresses(self, hostname: str) -> tuple[Ip, ...]:
        """As `Resolver`."""
        await self.is_open.wait()
        if hostname not in self.known:
            raise LookupFailedError(f"{hostname}: no such name")
        return self.known[hostname]


class Mind:
    """Everything between a question and its answer."""

    def __init__(
        self,
        certify: Callable[[Identity], WorkloadCertificate],
        settings: Settings | None = None,
        on_demand: OnDemand | None = None,
    ) -> None:
        self.plane, self.clock, self.store = ScriptedPlane(), FakeClock(), Store()
        self.authority, self.tasks = Authority(certify), Tasks()
        self.manager = SecretManager(self.authority, self.clock, self.tasks)
        self.certificates = Certificates(self.plane, self.manager)  # type: ignore[arg-type]
        self.dns = Dns()
        self.names = OnDemandDns(lambda: self.dns)
        self.upcalls = Upcalls(
            self.plane,  # type: ignore[arg-type]
            self.store,
            settings or Settings(),
            self.certificates,
            self.names,
            self.clock,
            self.tasks,
            on_demand,
        )
        self.upcalls.serve("w", A)

    def load(self) -> None:
        """The state arrives."""
        self.store.apply(local.parse(STATE, "test").updates)

    async def answer(self, key: Key | None, kind: QuestionKind = QuestionKind.OUTBOUND) -> Verdict:
        """Asks and waits."""
        number = self.plane.ask(key, kind)
        self.upcalls.pump()
        await until(lambda: number in self.plane.answers, "an answer")
        return self.plane.answers[number]


@pytest.fixture
async def mind(certify: Callable[[Identity], WorkloadCertificate]) -> AsyncIterator[Mind]:
    """An empty mind; its tasks end with the test."""
    mind = Mind(certify)
    yield mind
    mind.manager.stop()
    await mind.tasks.stop()


async def test_what_needs_nothing_more_is_answered_within_the_turn(mind: Mind) -> None:
    mind.load()
    number = mind.plane.ask(TO_NOBODY)

    mind.upcalls.pump()

    verdict = mind.plane.answers[number]
    assert (verdict.action, verdict.hops[0].protocol) == (Action.FORWARD, HopProtocol.TCP)
    assert verdict.epoch == Epoch(7, 3)


async def test_hbone_waits_for_the_workloads_own_certificate(mind: Mind) -> None:
    mind.load()
    mind.authority.is_open.clear()
    number = mind.plane.ask(TO_B)
    mind.upcalls.pump()
    await settle()
    assert number not in mind.plane.answers

    mind.authority.is_open.set()
    await until(lambda: number in mind.plane.answers, "an answer")

    assert mind.plane.answers[number].hops[0].protocol is HopProtocol.HBONE
    assert mind.plane.identities == ["spiffe://td/ns/ns/sa/a"]


async def test_many_questions_fetch_one_certificate(mind: Mind) -> None:
    mind.load()

    await asyncio.gather(*(mind.answer(TO_B) for _ in range(20)))

    assert mind.authority.calls == 1


async def test_an_identity_that_changes_meanwhile_is_provided_before_the_answer(
    mind: Mind,
) -> None:
    mind.load()
    mind.authority.is_open.clear()
    number = mind.plane.ask(TO_B)
    mind.upcalls.pump()
    await until(lambda: mind.authority.calls == 1, "the first certificate")

    mind.store.apply(local.parse(STATE.replace("td", "td2"), "test").updates)
    mind.authority.is_open.set()
    await until(lambda: number in mind.plane.answers, "an answer")

    assert mind.plane.answers[number].action is Action.FORWARD
    assert mind.plane.identities == ["spiffe://td/ns/ns/sa/a", "spiffe://td2/ns/ns/sa/a"]


async def test_without_a_certificate_hbone_is_a_recorded_identity_error(mind: Mind) -> None:
    mind.load()
    mind.authority.is_down = True

    verdict = await mind.answer(TO_B)

    assert (verdict.action, verdict.reason) == (Action.DENY, Reason.IDENTITY)
    assert verdict.reason.describe(verdict.detail) == "identity error: the authority is down"
    assert len(verdict.hops) == 1
    assert not verdict.ttl_s


async def test_without_a_certificate_a_handshake_is_refused(mind: Mind) -> None:
    mind.load()
    mind.authority.is_down = True

    verdict = await mind.answer(None, QuestionKind.IDENTITY)

    assert (verdict.action, verdict.reason) == (Action.DENY, Reason.SIGNING)
    assert verdict.detail == "the authority is down"


@pytest.mark.spec("dataplane-16", "state-55")
async def test_an_unknown_local_workload_is_awaited_for_five_seconds(mind: Mind) -> None:
    never, late = mind.plane.ask(TO_NOBODY), None
    mind.upcalls.pump()
    await settle()
    assert not mind.plane.answers

    mind.clock.advance(4.9)
    await settle()
    assert not mind.plane.answers
    mind.clock.advance(0.2)
    await until(lambda: never in mind.plane.answers, "a denial")

    verdict = mind.plane.answers[never]
    assert (verdict.action, verdict.reason) == (Action.DENY, Reason.UNKNOWN_WORKLOAD)
    assert verdict.detail == "a.ns (a)"

    late = mind.plane.ask(TO_NOBODY)
    mind.upcalls.pump()
    await settle()
    mind.clock.advance(2)
    mind.load()
    await until(lambda: late in mind.plane.answers, "a verdict")

    assert mind.plane.answers[late].action is Action.FORWARD
    assert mind.clock.pending == 0


async def test_a_decision_that_raises_denies_and_the_next_one_works(
    mind: Mind, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mind.load()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "at", lambda *_: 1 / 0)
        failed = await mind.answer(TO_NOBODY)
    good = await mind.answer(TO_NOBODY)

    assert (failed.action, failed.reason) == (Action.DENY, Reason.DECIDER_ERROR)
    assert (failed.epoch, failed.ttl_s) == (Epoch(7, 3), 0)
    assert good.action is Action.FORWARD
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize(("level", "ttl_s"), [("debug", FORWARD_TTL_S), ("info", 0)])
async def test_what_a_decision_says_is_said_for_each_connection(
    level: str,
    ttl_s: float,
    certify: Callable[[Identity], WorkloadCertificate],
    capfd: pytest.CaptureFixture[str],
) -> None:
    mind = Mind(certify, Settings(policy_log_level=level))
    mind.load()

    verdict = await mind.answer(TO_A, QuestionKind.INBOUND)

    assert (verdict.action, verdict.ttl_s) == (Action.FORWARD, ttl_s)
    assert ("no allow policies, allow" in capfd.readouterr().err) is (level == "info")


async def test_epochs_move_with_the_state_before_anybody_else_hears_of_it(mind: Mind) -> None:
    epochs.follow(mind.store, cast("DataPlane", mind.plane))
    heard: list[Epoch] = []
    mind.store.subscribe(lambda _: heard.append(mind.plane.epoch()))

    mind.load()
    mind.store.apply([service("web.test")])
    mind.store.apply([policy("p")])

    assert heard == [Epoch(8, 4), Epoch(9, 4), Epoch(9, 5)]


async def test_a_turn_takes_a_bounded_number_of_questions(mind: Mind) -> None:
    mind.load()
    for _ in range(QUESTIONS_PER_TURN + 1):
        mind.plane.ask(TO_NOBODY)

    mind.upcalls.pump()

    assert len(mind.plane.asked) == 1


async def test_renewed_certificate_is_given_to_the_engine(
    mind: Mind, certify: Callable[[Identity], WorkloadCertificate]
) -> None:
    mind.load()
    await mind.answer(TO_B)
    mind.authority.certify = lambda identity: dataclasses.replace(
        certify(identity), not_after=certify(identity).not_after + 3600
    )

    mind.clock.advance(1800)
    await until(lambda: len(mind.plane.identities) == 2, "the next certificate")

    assert len(set(mind.plane.identities)) == 1


# --- workloads that have a hostname only

_WEB = service("web.test", "/10.1.0.1")
_SERVES = {"default/web.test": {80: 8080}}


def _outer(name: str, **fields: Any) -> WorkloadUpdate:
    return pod(name, hostname=f"{name}.test", serves=_SERVES, **fields)


@pytest.mark.spec("dataplane-45")
async def test_hostname_is_looked_up_and_counted_for_each_connection(mind: Mind) -> None:
    mind.load()
    mind.store.apply([_WEB, _outer("outer")])
    mind.dns.known["outer.test"] = (SockAddr.parse("10.0.0.7:1").ip,)

    verdicts = [await mind.answer(TO_NAMED) for _ in range(3)]

    for verdict in verdicts:
        (hop,) = verdict.hops
        assert (str(hop.address), hop.authority) == ("10.0.0.7:15008", "10.0.0.7:8080")
        assert verdict.ttl_s == 0  # so that the next connection asks, and is counted
    principal = "spiffe://td/ns/ns/sa/a"
    source = ("", "", "", "ns", principal, "", "", "")
    assert mind.names.counts == {(*source, "outer.test"): 3}


@pytest.mark.spec("state-73")
@pytest.mark.parametrize(
    ("known", "error"),
    [
        ({}, "no ip addresses were resolved for workload: demo//Pod/default/outer"),
        (
            {"outer.test": ()},
            "ip addresses were resolved for workload demo//Pod/default/outer, but valid dns "
            "response had no A/AAAA records",
        ),
    ],
)
async def test_lookup_that_fails_refuses_that_connection_and_is_counted(
    mind: Mind, known: dict[str, tuple[Ip, ...]], error: str
) -> None:
    mind.load()
    mind.store.apply([_WEB, _outer("outer")])
    mind.dns.known = known

    verdict = await mind.answer(TO_NAMED)

    assert (verdict.action, verdict.hops, verdict.ttl_s) == (Action.DENY, (), 0)
    assert verdict.reason.describe(verdict.detail) == error
    assert list(mind.names.counts.values()) == [1]


async def test_endpoints_with_and_without_address_share_by_weight(mind: Mind) -> None:
    mind.load()
    mind.store.apply([_WEB, _outer("outer"), pod("inner", "10.0.0.8", serves=_SERVES)])
    mind.dns.known["outer.test"] = (SockAddr.parse("10.0.0.7:1").ip,)

    verdicts = [await mind.answer(TO_NAMED) for _ in range(200)]
    counts = Counter(str(verdict.hops[0].address) for verdict in verdicts)

    assert set(counts) == {"10.0.0.7:15008", "10.0.0.8:15008"}
    assert min(counts.values()) > 50
    assert sum(mind.names.counts.values()) == counts["10.0.0.7:15008"]


async def test_endpoint_that_goes_during_its_lookup_is_not_dialled(mind: Mind) -> None:
    mind.load()
    mind.store.apply([_WEB, _outer("outer")])
    mind.dns.known["outer.test"] = (SockAddr.parse("10.0.0.7:1").ip,)
    mind.dns.is_open.clear()
    number = mind.plane.ask(TO_NAMED)
    mind.upcalls.pump()
    await until(lambda: bool(mind.names.counts), "a lookup")

    gone = WorkloadRemoval("demo//Pod/default/outer")
    mind.store.apply([gone, pod("inner", "10.0.0.8", serves=_SERVES)])
    mind.dns.is_open.set()
    await until(lambda: number in mind.plane.answers, "an answer")

    assert str(mind.plane.answers[number].hops[0].address) == "10.0.0.8:15008"


async def test_who_has_no_certificate_is_told_so_without_a_lookup(mind: Mind) -> None:
    mind.load()
    mind.store.apply([_WEB, _outer("outer")])
    mind.authority.is_down = True

    verdict = await mind.answer(TO_NAMED)

    assert verdict.reason is Reason.IDENTITY
    assert not mind.names.counts
