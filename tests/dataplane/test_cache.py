# SPDX-License-Identifier: Apache-2.0
"""The verdict cache of the native engine: one test for each of its rules, and what it is for.

The rules are those of docs/boundary.md; their numbers are in the names.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import FIN, RST
from tests.support.clock import FakeClock
from tests.support.engines import MANY_WORKERS
from tests.support.plane import SERVER, WORKLOAD, Plane, forward
from tests.support.wait import until
from ztunnel_py.dataplane.abc import EngineSettings, RecordKind, Role
from ztunnel_py.dataplane.native import NativeEngine
from ztunnel_py.decide.key import PassthroughKey
from ztunnel_py.decide.verdict import Action, TrafficLabels, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.net import Net
    from tests.support.plane import Planes

RUNS_ON = ["native", MANY_WORKERS]
"""The only engine that keeps verdicts; all its workers share them."""
SOURCES = [f"127.0.1.{n}" for n in range(1, 11)]
STALL_S = 2.0
HERD = 200


@pytest.fixture
async def plane(planes: Planes) -> Plane:
    """An engine that keeps 64 verdicts per workload."""
    return await planes(SERVER, flows_per_workload=64)


def kept(plane: Plane, verdict: Verdict, ttl_s: float = 60.0, uses: str = "") -> Verdict:
    """`verdict` for further connections; `uses` names what it depends on."""
    return dataclasses.replace(
        verdict,
        ttl_s=ttl_s,
        uses_source="source" in uses,
        uses_host="host" in uses,
        uses_claims="claims" in uses,
        epoch=plane.engine.epoch(),
    )


async def connect(plane: Plane, net: Net, source: str | None = None) -> None:
    """A user's connection, served or refused."""
    before = len(plane.records)
    await net.dial(plane.port(Role.OUTBOUND), source)
    await until(lambda: len(plane.records) > before, "a record")


# --- the eight rules


async def test_rule_1_without_an_answer_a_connection_ends_unserved(
    planes: Planes, net: Net
) -> None:
    plane = await planes(flows_per_workload=64, questions_per_workload=1)
    app = await net.app()
    waiting = await net.user(plane, SOURCES[0])
    waiting.send(b"x" * 100)
    await plane.asked()

    too_many = await net.user(plane, SOURCES[1])
    refused = await plane.denied()
    plane.advance(plane.settings.decision_timeout_s + 1)
    unanswered = await plane.denied(2)

    assert [refused.reason, unanswered.reason] == [Reason.TOO_BUSY, Reason.DECISION_TIMEOUT]
    assert plane.event("questions_refused") == plane.event("decision_timeouts") == 1
    assert not app.accepted
    assert {await waiting.ending(), await too_many.ending()} <= {FIN, RST}


async def test_rule_2_a_stale_answer_serves_nobody_and_is_counted(plane: Plane, net: Net) -> None:
    app = await net.app()
    await net.user(plane)
    question = await plane.asked()
    stale = kept(plane, Verdict.deny(Reason.SELF_CALL))
    plane.engine.epoch_bump(policy=True)

    plane.engine.reply(question.id, stale)
    again = await plane.asked(2)
    plane.engine.reply(again.id, kept(plane, forward(app.address)))

    await app.accept()
    assert again.key == question.key
    assert plane.event("flow_stale_reply") == 1


@pytest.mark.parametrize("domain", ["discovery", "policy"])
async def test_rule_3_what_was_decided_before_a_change_is_a_miss(
    plane: Plane, net: Net, domain: str
) -> None:
    app = await net.app()
    plane.decide = lambda _: kept(plane, forward(app.address))
    for _ in range(3):
        await connect(plane, net)
    assert len(plane.flows) == 1

    plane.engine.epoch_bump(**{domain: True})
    plane.decide = lambda _: kept(plane, Verdict.deny(Reason.SELF_CALL))
    await connect(plane, net)

    assert (await plane.denied()).reason is Reason.SELF_CALL
    assert len(plane.flows) == 2
    assert plane.event("flow_stale") == 1


@pytest.mark.parametrize(("uses", "asked"), [("", 1), ("source", 2)])
async def test_rule_4_a_source_that_was_not_read_does_not_count(
    plane: Plane, net: Net, uses: str, asked: int
) -> None:
    app = await net.app()
    plane.decide = lambda _: kept(plane, forward(app.address), uses=uses)

    for source in [*SOURCES[:2], *SOURCES[:2]]:
        await connect(plane, net, source)

    assert len(plane.flows) == asked


@pytest.mark.parametrize(
    ("uses", "asked"), [("", 1), ("host", 2), ("claims", 3), ("host claims", 4)]
)
async def test_rule_4_claims_that_were_not_read_do_not_count(
    plane: Plane, net: Net, uses: str, asked: int
) -> None:
    app = await net.app()
    plane.decide = lambda _: kept(plane, forward(app.address, reporter="destination"), uses=uses)
    tunnel = await net.tunnel(plane)

    said = [
        [],
        [("forwarded", "host=web.test")],
        [("baggage", "k8s.namespace.name=x")],
        [("x-forwarded-network", "far")],
    ]
    for headers in said * 2:
        assert await tunnel.status(tunnel.connect(*headers)) == 200

    assert len(plane.flows) == asked


async def test_rule_4_the_authority_and_the_identity_always_count(plane: Plane, net: Net) -> None:
    app = await net.app()
    plane.decide = lambda _: kept(plane, forward(app.address, reporter="destination"))
    tunnels = [await net.tunnel(plane), await net.tunnel(plane, SERVER)]

    for tunnel in tunnels * 2:
        for port in (1, 2):
            await tunnel.status(tunnel.connect(authority=f"10.0.0.1:{port}"))

    assert len(plane.flows) == 4


async def test_rule_5_a_kept_verdict_counts_under_the_labels_of_its_hop(
    plane: Plane, net: Net
) -> None:
    app = await net.app()
    labels = TrafficLabels("source", destination_workload="web")
    verdict = forward(app.address)
    hop = dataclasses.replace(verdict.hops[0], labels=labels)
    plane.decide = lambda _: kept(plane, dataclasses.replace(verdict, hops=(hop,)))

    for _ in range(3):
        await connect(plane, net)

    assert len(plane.flows) == 1
    assert plane.engine.slots()[labels].opened == 3


async def test_rule_6_connections_of_one_verdict_keep_their_complete_keys(
    plane: Plane, net: Net
) -> None:
    app = await net.app()
    plane.decide = lambda _: kept(plane, forward(app.address, reporter="destination"))
    to = plane.port(Role.PASSTHROUGH)
    doomed = await net.dial(to, SOURCES[0])
    await app.accept()
    other = await net.dial(to, SOURCES[1])
    await app.accept()
    plane.engine.epoch_bump(policy=True)

    keys = plane.engine.live_keys(WORKLOAD)
    plane.engine.conn_kill(
        [conn for conn, key in keys.items() if key.src == doomed.local.ip], Reason.POLICY_CHANGED
    )
    await doomed.ending()

    assert len(plane.flows) == 1
    assert set(keys.values()) == {
        PassthroughKey(WORKLOAD, tcp.local.ip, to) for tcp in (doomed, other)
    }
    assert [one.src for one in plane.engine.connections()] == [other.local]


async def test_rule_7_a_refusal_is_kept_for_its_second(plane: Plane, net: Net) -> None:
    plane.decide = lambda _: kept(plane, Verdict.deny(Reason.NO_HEALTHY_UPSTREAM, "x"), ttl_s=1)

    for _ in range(5):
        await connect(plane, net)
    assert len(plane.flows) == 1
    plane.advance(1)
    await connect(plane, net)

    assert len(plane.flows) == 2
    assert [record.detail for record in plane.records] == ["x"] * 6


async def test_rule_7_what_has_no_time_to_live_serves_one_connection(
    plane: Plane, net: Net
) -> None:
    plane.decide = lambda _: kept(plane, Verdict.deny(Reason.UNKNOWN_WORKLOAD), ttl_s=0)

    for _ in range(3):
        await connect(plane, net)

    assert len(plane.flows) == 3


async def test_rule_8_a_workload_keeps_what_it_used_last(planes: Planes, net: Net) -> None:
    plane = await planes(flows_per_workload=4)
    app = await net.app()
    plane.decide = lambda _: kept(plane, forward(app.address), uses="source")

    for source in SOURCES[:4]:
        await connect(plane, net, source)
    await connect(plane, net, SOURCES[0])
    await connect(plane, net, SOURCES[4])
    asked = len(plane.flows)
    await connect(plane, net, SOURCES[0])
    assert len(plane.flows) == asked == 5
    await connect(plane, net, SOURCES[1])

    assert len(plane.flows) == 6
    assert plane.event("flow_evicted") == 2


async def test_rule_8_what_nobody_uses_is_forgotten(plane: Plane, net: Net) -> None:
    app = await net.app()
    plane.decide = lambda _: kept(plane, forward(app.address), ttl_s=1000)
    await connect(plane, net)

    plane.advance(plane.settings.flow_idle_s - 1)
    await connect(plane, net)
    assert len(plane.flows) == 1
    plane.advance(plane.settings.flow_idle_s + 1)
    await connect(plane, net)

    assert len(plane.flows) == 2


async def test_rule_8_a_workload_that_asks_for_everything_stops_no_other(
    planes: Planes, net: Net
) -> None:
    plane = await planes(
        flows_per_workload=64,
        questions_per_workload=16,
        host="0.0.0.0",
    )
    plane.add("b")
    app = await net.app()
    plane.decide = lambda question: (
        kept(plane, forward(app.address)) if question.workload == "b" else None
    )
    port = plane.port(Role.OUTBOUND).port
    destinations = [(f"127.1.{n // 250}.{1 + n % 250}", port) for n in range(2000)]

    greedy = await asyncio.to_thread(lambda: [socket.create_connection(to) for to in destinations])
    await until(lambda: plane.event("questions_refused") == 2000 - 16, "refusals")
    await net.dial(plane.port(Role.OUTBOUND, "b"))
    served = await app.accept()

    assert served.remote
    assert Counter(question.workload for question in plane.flows) == {WORKLOAD: 16, "b": 1}
    for sock in greedy:
        sock.close()


# --- what it is for


async def test_a_herd_of_misses_is_one_question(plane: Plane, net: Net) -> None:
    app = await net.app()
    users = await asyncio.gather(*(net.user(plane) for _ in range(HERD)))
    await until(lambda: plane.event("flow_joined") == HERD - 1, "all to wait")

    plane.answer(kept(plane, forward(app.address)))
    for user in users:
        user.send(b"x")
    for _ in range(HERD):
        assert await (await app.accept()).read(1) == b"x"

    assert len(plane.flows) == 1


async def test_a_herd_that_gets_a_verdict_for_one_asks_for_each(plane: Plane, net: Net) -> None:
    app = await net.app()
    await asyncio.gather(*(net.user(plane) for _ in range(20)))
    await until(lambda: plane.event("flow_joined") == 19, "all to wait")

    plane.decide = lambda _: kept(plane, forward(app.address), ttl_s=0)
    plane.answer(kept(plane, forward(app.address), ttl_s=0))
    for _ in range(20):
        await app.accept()

    assert len(plane.flows) == 20


async def test_a_hop_is_drawn_by_weight_for_each_connection(plane: Plane, net: Net) -> None:
    apps = [await net.app() for _ in range(3)]
    hops = [
        dataclasses.replace(forward(app.address).hops[0], weight=weight)
        for app, weight in zip(apps, (3, 1, 0), strict=True)
    ]
    plane.decide = lambda _: kept(plane, Verdict(Action.FORWARD, hops=tuple(hops)))

    for _ in range(20):
        await asyncio.gather(*(net.user(plane) for _ in range(20)))
    await until(lambda: sum(len(app.accepted) for app in apps) == 400, "400 connections")

    often, seldom, never = (len(app.accepted) for app in apps)
    assert len(plane.flows) == 1
    assert 240 <= often <= 360
    assert often + seldom == 400
    assert never == 0


async def test_verdicts_of_a_removed_workload_are_gone(plane: Plane, net: Net) -> None:
    app = await net.app()
    plane.add("b")
    plane.decide = lambda _: kept(plane, forward(app.address))
    await net.dial(plane.port(Role.OUTBOUND, "b"))
    await app.accept()

    plane.engine.workload_remove("b")
    plane.add("b")
    await net.dial(plane.port(Role.OUTBOUND, "b"))
    await app.accept()

    assert len(plane.flows) == 2


# --- Python stalls


class Echo:
    """An application on a thread of its own: sends back what comes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = SockAddr.of(self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(1 << 16):
                sock.sendall(data)

    def close(self) -> None:
        """Accepts no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def app_thread() -> Iterator[Echo]:
    app = Echo()
    yield app
    app.close()


async def test_while_python_stalls_known_flows_are_served(app_thread: Echo) -> None:
    plane = Plane(NativeEngine(), FakeClock(), EngineSettings(flows_per_workload=64), None)
    await plane.start()
    plane.decide = lambda _: kept(plane, forward(app_thread.address))
    to = plane.port(Role.OUTBOUND)
    old = await asyncio.to_thread(socket.create_connection, (str(to.ip), to.port), 5.0)
    assert await asyncio.to_thread(rounds, old, 1) > 0
    slowest, opened = [0.0], [0]
    has_begun, is_over = threading.Event(), threading.Event()

    def use() -> None:
        has_begun.wait()
        while not is_over.is_set():
            begun = time.monotonic()
            rounds(old, 1)
            with socket.create_connection((str(to.ip), to.port), 5.0) as new:
                rounds(new, 1)
            opened[0] += 1
            slowest[0] = max(slowest[0], time.monotonic() - begun)

    user = threading.Thread(target=use, daemon=True)
    user.start()
    asked = len(plane.flows)
    has_begun.set()
    time.sleep(STALL_S)  # noqa: ASYNC251  (this is the stall)
    is_over.set()
    user.join(5.0)
    old.close()

    assert len(plane.flows) == asked == 1
    assert opened[0] >= 50
    assert slowest[0] < STALL_S / 4
    await until(lambda: len(plane.of(RecordKind.CLOSED)) == opened[0] + 1, "all records")
    await plane.stop()


def rounds(sock: socket.socket, count: int) -> int:
    """Sends a kilobyte and waits for it, `count` times."""
    for _ in range(count):
        sock.sendall(b"x" * 1024)
        got = 0
        while got < 1024:
            got += len(sock.recv(1024 - got)) or _fail()
    return count


def _fail() -> int:
    raise ConnectionError("closed")
