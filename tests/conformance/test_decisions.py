# SPDX-License-Identifier: Apache-2.0
"""Questions and answers: nothing moves without a verdict, and each denial has its reason."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import FIN, RST
from tests.support.frames import CANCEL
from tests.support.plane import WORKLOAD, address, forward, inbound_key, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import QuestionKind, Role
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey
from ztunnel_py.decide.verdict import Action, Epoch, Verdict
from ztunnel_py.errors import Flag, Reason

if TYPE_CHECKING:
    from tests.support.net import Net
    from tests.support.plane import Plane

EARLY = [reason for reason in Reason if reason.is_early]
CAPTURED = [(Role.OUTBOUND, "source"), (Role.PASSTHROUGH, "destination")]


async def test_question_names_workload_source_and_destination(client: Plane, net: Net) -> None:
    user = await net.dial(client.port(Role.OUTBOUND))
    plain = await net.dial(client.port(Role.PASSTHROUGH))
    await client.asked(2)

    asked = {question.kind: question.key for question in client.flows}
    assert asked == {
        QuestionKind.OUTBOUND: OutboundKey(WORKLOAD, user.local.ip, user.remote),
        QuestionKind.PASSTHROUGH: PassthroughKey(WORKLOAD, plain.local.ip, plain.remote),
    }


@pytest.mark.parametrize(("role", "side"), CAPTURED)
async def test_nothing_is_dialled_or_read_before_the_verdict(
    client: Plane, net: Net, role: Role, side: str
) -> None:
    app = await net.app()
    user = await net.dial(client.port(role))
    user.send(b"x" * 100)
    await client.asked()
    await settle()
    assert not app.accepted
    assert user.unread_by_engine == 100

    client.answer(forward(app.address, reporter=side))

    assert await (await app.accept()).read(100) == b"x" * 100


@pytest.mark.spec("dataplane-109")
@pytest.mark.parametrize("reason", EARLY, ids=[reason.name for reason in EARLY])
@pytest.mark.parametrize(("role", "side"), CAPTURED)
async def test_early_denial_closes_makes_one_record_and_no_series(
    client: Plane, net: Net, reason: Reason, role: Role, side: str
) -> None:
    client.decide = lambda _: Verdict.deny(reason, "why")

    user = await net.dial(client.port(role))
    record = await client.denied()

    assert await user.ending() == FIN
    assert (record.reason, record.detail, record.log) == (reason, "why", None)
    assert (record.src, record.dst) == (user.local, user.remote)
    assert client.engine.slots() == {}
    await until(lambda: client.sockets_open(side) == 0, "the gauge")
    assert len(client.records) == 1


async def test_denied_client_that_has_written_sees_a_reset(client: Plane, net: Net) -> None:
    user = await net.user(client)
    user.send(b"early")
    await client.asked()
    await until(lambda: user.unread_by_engine == 5, "bytes at the engine")

    client.answer(Verdict.deny(Reason.NO_ROUTE))

    assert await user.ending() == RST


@pytest.mark.parametrize(("role", "side"), CAPTURED)
async def test_policy_denial_is_counted_under_the_labels_of_its_hop(
    client: Plane, net: Net, role: Role, side: str
) -> None:
    hop = forward(address(1), reporter=side).hops[0]
    client.decide = lambda _: Verdict.deny(Reason.POLICY_DENIED, "explicitly denied by: a/b", hop)

    user = await net.dial(client.port(role))

    assert await user.ending() == FIN
    await client.closed()
    assert list(client.engine.slots()) == [hop.labels]
    assert client.counts.opened == 1
    assert client.counts.closed == {Flag.DENY: 1}


@pytest.mark.parametrize("role", [Role.OUTBOUND, Role.PASSTHROUGH])
async def test_question_without_an_answer_is_a_denial_after_30_s(
    client: Plane, net: Net, role: Role
) -> None:
    user = await net.dial(client.port(role))
    question = await client.asked()

    client.advance(29.9)
    await settle()
    assert not client.records
    client.advance(0.1)

    record = await client.denied()
    assert record.reason.describe(record.detail) == "no decision within 30 s"
    assert await user.ending() == FIN
    assert client.event("decision_timeouts") == 1
    client.engine.reply(question.id, forward(address(1)))  # too late: ignored


async def test_stream_without_an_answer_gets_503_after_30_s(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await server.asked()

    await server.pass_time(30, tunnel)

    assert await tunnel.status(stream) == 503
    assert (await server.denied()).reason is Reason.DECISION_TIMEOUT


async def test_second_answer_and_unknown_questions_are_ignored(client: Plane, net: Net) -> None:
    app = await net.app()
    await net.user(client)
    question = await client.asked()

    client.engine.reply(question.id, forward(app.address))
    client.engine.reply(question.id, Verdict.deny(Reason.NO_ROUTE))
    client.engine.reply(10**9, Verdict.deny(Reason.NO_ROUTE))

    await app.accept()


async def test_client_that_leaves_before_the_verdict_gets_its_record(
    client: Plane, net: Net
) -> None:
    app = await net.app()
    user = await net.user(client)
    await client.asked()
    user.close()
    await settle()

    client.answer(forward(app.address))

    served = await app.accept()
    assert await served.read_all() == b""
    served.close()
    assert (await client.closed()).reason is Reason.OK


async def test_hop_is_drawn_by_weight_and_zero_is_never_drawn(client: Plane, net: Net) -> None:
    heavy, light, never = [await net.app() for _ in range(3)]
    hops = [
        dataclasses.replace(forward(app.address).hops[0], weight=weight)
        for app, weight in ((heavy, 4), (light, 1), (never, 0))
    ]
    client.decide = lambda _: Verdict(Action.FORWARD, hops=tuple(hops))

    for _ in range(60):
        await net.user(client)
    await until(lambda: len(heavy.accepted) + len(light.accepted) == 60, "60 connections")

    assert len(heavy.accepted) > len(light.accepted) > 0
    assert not never.accepted


@pytest.mark.spec("dataplane-49")
async def test_blackholed_tunnel_port_fails_at_10_s_and_hints_at_network_policy(
    client: Plane, net: Net
) -> None:
    hole = net.hole()
    client.decide = lambda _: through(hole)
    user = await net.user(client)
    await net.dialling(hole)

    client.advance(9.9)
    await settle()
    assert not client.counts.closed
    client.advance(0.1)

    assert await user.read_all() == b""
    record = await client.closed()
    assert record.reason.describe(record.detail) == (
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: "
        "deadline has elapsed"
    )
    assert client.counts.closed == {Flag.NETWORK_POLICY: 1}


@pytest.mark.spec("dataplane-50")
async def test_refusing_destination_is_an_io_error(client: Plane, net: Net) -> None:
    app = await net.app()
    app.close()
    client.decide = lambda _: forward(app.address)

    user = await net.user(client)

    assert await user.read_all() == b""
    record = await client.closed()
    assert record.reason.describe(record.detail) == ("io error: Connection refused (os error 111)")
    assert client.counts.closed == {Flag.CONNECT: 1}


async def test_refusing_tunnel_port_is_an_io_error(client: Plane, net: Net) -> None:
    app = await net.app()
    app.close()
    client.decide = lambda _: through(app.address)

    user = await net.user(client)

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.IO


async def test_silent_destination_is_given_up_at_10_s(client: Plane, net: Net) -> None:
    hole = net.hole()
    client.decide = lambda _: forward(hole)
    user = await net.user(client)
    await net.dialling(hole)

    client.advance(10)

    assert await user.read_all() == b""
    record = await client.closed()
    assert record.reason.describe(record.detail) == "io error: deadline has elapsed"


async def test_epoch_counts_bumps_by_domain(client: Plane) -> None:
    assert client.engine.epoch() == Epoch(0, 0)

    client.engine.epoch_bump(discovery=True)
    client.engine.epoch_bump(policy=True)
    client.engine.epoch_bump(policy=True, discovery=True)

    assert client.engine.epoch() == Epoch(2, 2)


async def test_plaintext_reaches_the_application_and_has_no_tunnel(client: Plane, net: Net) -> None:
    app = await net.app()
    client.decide = lambda _: forward(app.address, reporter="destination")
    user = await net.dial(client.port(Role.PASSTHROUGH))
    served = await app.accept()

    user.send(b"hello")
    assert await served.read(5) == b"hello"
    user.end()
    served.end()

    record = await client.closed()
    assert (record.dst, record.app, record.hbone_addr) == (user.remote, app.address, "")
    assert record.protocol == "TCP"


# --- live flows


async def test_live_keys_hold_every_inbound_connection_also_while_dialling(
    server: Plane, net: Net
) -> None:
    hole, app = net.hole(), await net.app()
    tunnel = await net.tunnel(server)
    server.decide = lambda question: forward(
        hole if inbound_key(question).authority == "hole:1" else app.address, reporter="destination"
    )
    tunnel.connect(authority="hole:1")
    tunnel.connect(authority="app:1")
    await net.dialling(hole)
    await app.accept()

    keys = server.engine.live_keys(WORKLOAD)

    assert len(keys) == 2
    assert set(keys.values()) == {question.key for question in server.flows}
    assert set(keys) == {view.id for view in server.engine.connections()}


async def test_killed_stream_is_cancelled_with_the_reason_and_the_tunnel_lives(
    server: Plane, net: Net
) -> None:
    apps = {"doomed:1": await net.app(), "other:1": await net.app()}
    server.decide = lambda question: forward(
        apps[inbound_key(question).authority].address, reporter="destination"
    )
    tunnel = await net.tunnel(server)
    streams = {name: tunnel.connect(authority=name) for name in apps}
    served = {name: await app.accept() for name, app in apps.items()}
    keys = server.engine.live_keys(WORKLOAD).items()
    conns = {key.authority: conn for conn, key in keys if isinstance(key, InboundKey)}

    server.engine.conn_kill([conns["doomed:1"]], Reason.POLICY_CHANGED)

    assert await tunnel.reset(streams["doomed:1"]) == CANCEL
    assert await served["doomed:1"].read_all() == b""
    record = await server.closed()
    assert record.reason.describe(record.detail) == "connection closed due to policy change"
    tunnel.data(streams["other:1"], b"alive")
    assert await served["other:1"].read(5) == b"alive"


async def test_killed_while_dialling_is_never_served(server: Plane, net: Net) -> None:
    hole = net.hole()
    server.decide = lambda _: forward(hole, reporter="destination")
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await net.dialling(hole)

    server.engine.conn_kill(list(server.engine.live_keys(WORKLOAD)), Reason.POLICY_CHANGED)

    await tunnel.reset(stream)
    assert stream not in tunnel.headers
    assert (await server.closed()).reason is Reason.POLICY_CHANGED


async def test_killed_plaintext_connection_is_closed(client: Plane, net: Net) -> None:
    app = await net.app()
    client.decide = lambda _: forward(app.address, reporter="destination")
    user = await net.dial(client.port(Role.PASSTHROUGH))
    served = await app.accept()

    client.engine.conn_kill([*client.engine.live_keys(WORKLOAD), 10**9], Reason.POLICY_CHANGED)

    await asyncio.gather(user.ending(), served.ending())
    assert (await client.closed()).reason is Reason.POLICY_CHANGED
