# SPDX-License-Identifier: Apache-2.0
"""A change of policy ends the live connections that it no longer allows, and no others."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from typing import TYPE_CHECKING, cast

import pytest

from tests.state.build import exact, ip, pod, policy, service
from tests.support.frames import CANCEL
from tests.support.plane import SERVER, WORKLOAD
from tests.support.wait import settle, until
from ztunnel_py.dataplane import epochs
from ztunnel_py.dataplane.abc import QuestionKind, Role
from ztunnel_py.dataplane.revalidate import SLICE_S, Revalidate
from ztunnel_py.dataplane.upcalls import Upcalls
from ztunnel_py.decide.key import InboundKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action, Verdict
from ztunnel_py.dns.on_demand import OnDemandDns
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.policy import Match
from ztunnel_py.state.store import Store, WorkloadRemoval
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import DataPlane, Question
    from ztunnel_py.dataplane.certificates import Certificates
    from ztunnel_py.dns.on_demand import Addresses
    from ztunnel_py.state.address import SockAddr

ME = pod("me", "127.0.0.1")
INFO = WorkloadInfo("me", "default", "me")
STRANGER = Identity("cluster.local", "ns", "stranger")
DENY_STRANGER = policy("no", Match(principals=exact(STRANGER.principal)), action="Deny")


# --- with a scripted engine


class Living:
    """An engine with connections."""

    def __init__(self, keys: Mapping[int, InboundKey]) -> None:
        self.keys = dict(keys)
        self.killed: list[int] = []
        self.kills = 0
        self.looked_at = 0

    def live_keys(self, workload: str) -> Mapping[int, InboundKey]:
        """As the contract."""
        self.looked_at += 1
        return dict(self.keys)

    def conn_kill(self, conns: Sequence[int], reason: Reason) -> None:
        """As the contract."""
        assert reason is Reason.POLICY_CHANGED
        self.kills += 1
        self.killed += conns
        for conn in conns:
            del self.keys[conn]


class Judge:
    """Decides by the authority."""

    def __init__(self) -> None:
        self.judged: list[str] = []
        self.time = 0.0

    def workloads(self) -> list[str]:
        """As `Upcalls`."""
        return ["w"]

    def decide(self, key: InboundKey) -> Verdict:
        """As `Upcalls`; takes a millisecond."""
        self.judged.append(key.authority)
        self.time += 0.001
        if key.authority == "broken":
            raise ZeroDivisionError
        if key.authority.startswith("bad"):
            return Verdict.deny(Reason.POLICY_DENIED)
        return Verdict(Action.FORWARD)


class Round:
    """What a test looks at."""

    def __init__(self, *authorities: str) -> None:
        self.plane = Living({n: key(text) for n, text in enumerate(authorities)})
        self.store, self.judge, self.tasks = Store(), Judge(), Tasks()
        self.revalidate = Revalidate(
            cast("DataPlane", self.plane),
            self.store,
            cast("Upcalls", self.judge),
            self.tasks,
            lambda: self.judge.time,
        )
        self.revalidate.start()

    def change(self) -> None:
        """Something that authorizations read."""
        self.store.apply([policy("p")])


def key(authority: str) -> InboundKey:
    return InboundKey("w", ip("10.0.0.2"), ip("10.0.0.1"), None, authority)


async def test_each_key_is_decided_once_and_all_its_connections_end() -> None:
    round_ = Round("bad", "good", "bad", "good")

    round_.change()
    await until(lambda: not round_.revalidate._is_running, "a round")

    assert round_.judge.judged == ["bad", "good"]
    assert round_.plane.killed == [0, 2]


async def test_discovery_alone_looks_at_nothing() -> None:
    round_ = Round("bad")

    round_.store.apply([service("web.test")])
    await settle()

    assert not round_.plane.looked_at


async def test_what_cannot_be_decided_is_ended_and_logged(
    capfd: pytest.CaptureFixture[str],
) -> None:
    round_ = Round("broken", "good")

    round_.change()
    await until(lambda: not round_.revalidate._is_running, "a round")

    assert round_.plane.killed == [0]
    assert "ZeroDivisionError" in capfd.readouterr().err


async def test_the_loop_is_free_between_slices() -> None:
    slice_ = round(SLICE_S / 0.001)
    round_ = Round(*(f"bad{n}" for n in range(10 * slice_)))
    seen: list[int] = []

    round_.change()
    while round_.revalidate._is_running:
        seen.append(len(round_.judge.judged))
        await asyncio.sleep(0)

    assert len(round_.plane.killed) == 10 * slice_
    assert max(after - before for before, after in itertools.pairwise(seen)) <= slice_
    assert round_.plane.kills >= 10


async def test_changes_that_come_meanwhile_are_one_more_round() -> None:
    round_ = Round(*(f"good{n}" for n in range(50)))

    round_.change()
    await until(lambda: bool(round_.judge.judged), "a slice")
    for _ in range(20):
        round_.change()
    await until(lambda: not round_.revalidate._is_running, "all rounds")

    assert round_.plane.looked_at == 2


async def test_stopped_it_begins_no_round_that_was_due() -> None:
    round_ = Round(*(f"good{n}" for n in range(100)))

    round_.change()
    await until(lambda: bool(round_.judge.judged), "a slice")
    round_.change()
    round_.revalidate.stop()
    await until(lambda: not round_.revalidate._is_running, "its end")

    assert round_.plane.looked_at == 1


async def test_stopped_it_ends_at_the_next_slice() -> None:
    round_ = Round(*(f"bad{n}" for n in range(100)))

    round_.change()
    await until(lambda: bool(round_.judge.judged), "a slice")
    round_.revalidate.stop()
    await until(lambda: not round_.revalidate._is_running, "its end")
    round_.change()
    await settle()

    assert len(round_.judge.judged) < 100


# --- with an engine


class Ruled:
    """A server whose connections are decided from a state."""

    def __init__(self, plane: Plane) -> None:
        self.plane, self.store, self.tasks = plane, Store(), Tasks()
        engine = plane.engine
        self.store.apply([ME])
        epochs.follow(self.store, engine)
        self.upcalls = Upcalls(
            engine,
            self.store,
            Settings(),
            cast("Certificates", None),
            OnDemandDns(cast("Callable[[], Addresses]", None)),
            cast("Clock", plane.clock),
            self.tasks,
        )
        self.upcalls.serve(WORKLOAD, INFO)
        self.revalidate = Revalidate(engine, self.store, self.upcalls, self.tasks)
        self.revalidate.start()
        self.app: SockAddr | None = None
        """Where plaintext goes: nothing redirects it here."""
        plane.decide = self.decide

    def decide(self, question: Question) -> Verdict:
        """The state's verdict, with nothing that needs privileges."""
        verdict = self.upcalls.decide(cast("InboundKey", question.key))
        to = self.app if question.kind is QuestionKind.PASSTHROUGH else None
        hops = tuple(
            dataclasses.replace(hop, address=to or hop.address, keep_source=False)
            for hop in verdict.hops
        )
        return dataclasses.replace(verdict, hops=hops, epoch=self.plane.engine.epoch())


@pytest.fixture
async def ruled(planes: Planes) -> AsyncIterator[Ruled]:
    """A ruled server with the cache on, where there is one."""
    ruled = Ruled(await planes(SERVER, flows_per_workload=64))
    yield ruled
    ruled.revalidate.stop()
    await ruled.tasks.stop()


@pytest.mark.spec("dataplane-99", "state-98")
async def test_a_new_policy_cuts_what_it_denies_and_leaves_the_rest(ruled: Ruled, net: Net) -> None:
    app = await net.app()
    doomed = await net.tunnel(ruled.plane, STRANGER)
    other = await net.tunnel(ruled.plane)
    cut = doomed.connect(authority=str(app.address))
    await app.accept()
    kept = other.connect(authority=str(app.address))
    served = await app.accept()

    ruled.store.apply([DENY_STRANGER])

    assert await doomed.reset(cut) == CANCEL
    assert (await ruled.plane.closed()).reason is Reason.POLICY_CHANGED
    other.data(kept, b"alive")
    assert await served.read(5) == b"alive"


@pytest.mark.spec("dataplane-100")
async def test_a_policy_that_comes_while_dialling_is_never_served(ruled: Ruled, net: Net) -> None:
    hole = net.hole()
    tunnel = await net.tunnel(ruled.plane, STRANGER)
    stream = tunnel.connect(authority=str(hole))
    await net.dialling(hole)

    ruled.store.apply([DENY_STRANGER])

    await tunnel.reset(stream)
    assert stream not in tunnel.headers
    assert (await ruled.plane.closed()).reason is Reason.POLICY_CHANGED


async def test_plaintext_is_cut_when_an_identity_is_asked_for(ruled: Ruled, net: Net) -> None:
    app = await net.app()
    ruled.app = app.address
    user = await net.dial(ruled.plane.port(Role.PASSTHROUGH))
    served = await app.accept()

    ruled.store.apply([policy("must", Match(principals=exact(STRANGER.principal)))])

    await asyncio.gather(user.ending(), served.ending())
    assert (await ruled.plane.closed()).reason is Reason.POLICY_CHANGED


async def test_after_a_change_nothing_stale_admits(ruled: Ruled, net: Net) -> None:
    app = await net.app()
    tunnel = await net.tunnel(ruled.plane, STRANGER)
    tunnel.connect(authority=str(app.address))
    await app.accept()

    ruled.store.apply([DENY_STRANGER])
    refused = tunnel.connect(authority=str(app.address))

    # Refused by its own question, or ended by the round that found it waiting for one.
    await until(lambda: refused in tunnel.headers or refused in tunnel.resets, "its end")
    assert refused not in tunnel.headers or await tunnel.status(refused) == 401
    assert len(app.accepted) == 1


async def test_a_workload_that_left_the_state_keeps_what_its_policies_allow(
    ruled: Ruled, net: Net
) -> None:
    app = await net.app()
    tunnel = await net.tunnel(ruled.plane)
    stream = tunnel.connect(authority=str(app.address))
    served = await app.accept()

    ruled.store.apply([WorkloadRemoval(ME.workload.uid)])
    await until(lambda: not ruled.revalidate._is_running, "a round")

    tunnel.data(stream, b"alive")
    assert await served.read(5) == b"alive"


async def test_a_verdict_from_the_state_serves_the_next_connection_where_there_is_a_cache(
    ruled: Ruled, net: Net
) -> None:
    app = await net.app()
    tunnel = await net.tunnel(ruled.plane)

    for _ in range(3):
        tunnel.connect(authority=str(app.address))
        await app.accept()

    has_cache = ruled.plane.engine.__impl__ == "native"
    assert len(ruled.plane.flows) == (1 if has_cache else 3)
