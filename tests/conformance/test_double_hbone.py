# SPDX-License-Identifier: Apache-2.0
"""Double HBONE: a tunnel inside of a stream of another, each with an identity of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.support.plane import CLIENT, SERVER, address, forward, inbound_key, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import QuestionKind, RecordKind, Role
from ztunnel_py.dataplane.counters import SlotCounts
from ztunnel_py.decide.key import RemoteKey
from ztunnel_py.decide.verdict import (
    FORWARDED_NETWORK,
    Action,
    Hop,
    HopProtocol,
    LogFields,
    TrafficLabels,
    Verdict,
)
from ztunnel_py.errors import Flag, Reason
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from ztunnel_py.dataplane.abc import Question

GATEWAY = Identity("cluster.local", "istio-gateways", "east-west")
BODY = bytes(range(256)) * 20_000


@pytest.fixture
async def gateway(planes: Planes, server: Plane) -> Plane:
    """An east-west gateway: what is asked of it goes to the server's tunnel port."""
    plane = await planes(GATEWAY)
    plane.decide = lambda _: forward(server.port(Role.INBOUND), reporter="destination")
    return plane


def doubly(gateway: Plane, sans: tuple[Identity, ...] = (SERVER,)) -> Verdict:
    """A verdict through the gateway to a server that proves one of `sans`."""
    (hop,) = through(gateway.port(Role.INBOUND), "web.shop:80", sans=(GATEWAY,)).hops
    hop = dataclasses.replace(
        hop,
        protocol=HopProtocol.DOUBLE_HBONE,
        sans=(GATEWAY,),
        inner_authority="web.shop.svc:8080",
        inner_sans=sans,
    )
    return Verdict(Action.FORWARD, hops=(hop,))


async def test_bytes_and_ends_pass_through_both_tunnels(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")
    user = await net.user(client)
    served = await app.accept()

    user.send(BODY)
    user.end()
    assert await served.read_all() == BODY
    served.send(BODY[::-1])
    served.end()

    assert await user.read_all() == BODY[::-1]
    record = await client.closed()
    assert (record.reason, record.protocol) == (Reason.OK, "DOUBLEHBONE")
    assert (record.upstream_bytes, record.downstream_bytes) == (len(BODY), len(BODY))


async def test_each_side_sees_its_own_authority_and_the_clients_identity(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")

    await net.user(client)
    outer, inner = inbound_key(await gateway.asked()), inbound_key(await server.asked())

    assert (outer.authority, inner.authority) == ("web.shop:80", "web.shop.svc:8080")
    assert outer.identity == inner.identity == CLIENT


async def test_a_connection_has_one_id_on_both_tunnels(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")

    await net.user(client)
    await app.accept()

    shown = [plane.engine.connections() for plane in (client, gateway, server)]
    assert len({view.trace for views in shown for view in views}) == 1


@pytest.mark.spec("dataplane-41")
async def test_network_of_the_client_is_said_inside_only(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    network = ((FORWARDED_NETWORK, "here"),)
    client.decide = lambda _: dataclasses.replace(doubly(gateway), headers=network)
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)

    await net.user(client)
    outer, inner = inbound_key(await gateway.asked()), inbound_key(await server.asked())

    assert (outer.network, inner.network) == (None, "here")


@pytest.mark.spec("ops-42")
@pytest.mark.parametrize("sans", [(), (GATEWAY,)], ids=["nobody", "somebody else"])
async def test_inner_server_that_is_not_expected_is_not_believed(
    client: Plane, gateway: Plane, server: Plane, net: Net, sans: tuple[Identity, ...]
) -> None:
    client.decide = lambda _: doubly(gateway, sans)

    user = await net.user(client)

    assert await user.read_all() == b""
    record = await client.closed()
    assert record.reason is Reason.IO
    assert "identity verification error" in record.detail
    assert not server.flows


async def test_outer_tunnel_is_shared_and_inner_ones_go_with_their_connections(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")

    for count in range(1, 4):
        user = await net.user(client)
        served = await app.accept()
        user.end()
        served.end()
        await client.closed(count)

    await until(lambda: len(client.engine.tunnels()) == 1, "inner tunnels to go")
    assert gateway.sockets_open("destination") == 1


async def test_refusal_by_the_inner_server_is_named(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST, "web.shop.svc")

    user = await net.user(client)

    assert await user.read_all() == b""
    record = await client.closed()
    assert record.reason.describe(record.detail) == "http status: 503 Service Unavailable"


async def test_gateway_that_goes_breaks_what_is_inside(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")
    user = await net.user(client)
    await app.accept()
    user.send(b"x")
    await until(lambda: client.engine.connections()[0].upstream_bytes == 1, "a byte")

    gateway.engine.workload_remove("a")

    assert await user.read_all() == b""


@pytest.mark.parametrize("word", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["garbage", "end"])
async def test_inner_server_that_speaks_no_tls_costs_its_connection_only(
    client: Plane, gateway: Plane, net: Net, word: bytes
) -> None:
    app = await net.app()
    gateway.decide = lambda _: forward(app.address)
    client.decide = lambda _: doubly(gateway)
    user = await net.user(client)
    served = await app.accept()

    served.send(word)
    served.end()

    assert await user.read_some_or_reset() == b""
    assert (await client.closed()).reason is Reason.IO
    assert len(client.engine.tunnels()) == 1


async def test_inner_server_that_says_nothing_is_given_ten_seconds(
    client: Plane, gateway: Plane, net: Net
) -> None:
    app = await net.app()
    gateway.decide = lambda _: forward(app.address)
    client.decide = lambda _: doubly(gateway)
    user = await net.user(client)
    silent = await app.accept()
    assert await silent.read_some()
    await settle(2)

    client.advance(9.9)
    await settle(2)
    assert not client.of(RecordKind.CLOSED)
    client.advance(0.1)

    assert await user.read_some_or_reset() == b""
    record = await client.closed()
    assert record.reason.describe(record.detail) == "io error: tls handshake timed out"
    await silent.ending()


async def test_stalled_reader_behind_a_gateway_stops_no_other(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")
    stalling = await net.user(client)
    deaf = await app.accept()
    stalling.send(bytes(32 << 20))
    await until(lambda: client.engine.connections()[0].upstream_bytes >= 4 << 20, "a full window")

    user = await net.user(client)
    served = await app.accept()
    user.send(BODY)
    assert await served.read(len(BODY)) == BODY
    served.send(BODY)

    assert await user.read(len(BODY)) == BODY
    stalling.close()
    deaf.close()


async def test_crowd_behind_a_gateway_gets_what_is_its_own(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")

    async def visit(number: int) -> bytes:
        user = await net.user(client)
        user.send(b"%05d" % number)
        user.end()
        return await user.read_all()

    async def serve() -> None:
        served = await app.accept()
        served.send(await served.read_all())
        served.end()

    answers, _ = await asyncio.gather(
        asyncio.gather(*(visit(number) for number in range(40))),
        asyncio.gather(*(serve() for _ in range(40))),
    )

    assert answers == [b"%05d" % number for number in range(40)]
    await client.closed(40)
    await until(lambda: len(client.engine.tunnels()) == 1, "inner tunnels to go")


# --- who has answered


BAGGAGE = (("baggage", "k8s.deployment.name=web"), ("baggage", "service.version=v2"))
LABELS = TrafficLabels("source", destination_workload="web", destination_principal=str(SERVER))
NAMED = Verdict(
    Action.FORWARD,
    hops=(Hop(HopProtocol.DOUBLE_HBONE, address(1), LABELS, LogFields(dst_workload="web")),),
    ttl_s=60,
)


@pytest.mark.spec("dataplane-43")
async def test_connection_is_labelled_by_who_answered_at_its_end(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    client.name_remote = lambda _: NAMED
    server.decide = lambda _: dataclasses.replace(forward(app.address), headers=BAGGAGE)

    user = await net.user(client)
    user.send(b"hello")
    user.end()
    served = await app.accept()
    assert await served.read_all() == b"hello"
    served.end()
    record = await client.closed()

    (question,) = (one for one in client.questions if one.kind is QuestionKind.REMOTE)
    key = question.key
    assert isinstance(key, RemoteKey)
    assert key.dst == record.original_dst
    assert (key.identity, key.baggage) == (SERVER, tuple(value for _, value in BAGGAGE))
    assert record.log == LogFields(dst_workload="web")
    assert (record.dst, record.protocol) == (gateway.port(Role.INBOUND), "DOUBLEHBONE")
    assert client.engine.slots() == {LABELS: SlotCounts(1, 5, 0, {Flag.NONE: 1})}


async def test_connection_counts_from_the_answer_on_and_what_came_before_is_kept(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    client.name_remote = lambda _: None
    server.decide = lambda _: forward(app.address, reporter="destination")
    user = await net.user(client)
    served = await app.accept()
    served.send(BODY)
    served.end()
    await until(lambda: any(is_remote(one) for one in client.questions), "the question")
    assert not client.engine.slots()

    (question,) = filter(is_remote, client.questions)
    client.engine.reply(question.id, NAMED)

    assert await user.read_all() == BODY
    user.end()
    await client.closed()
    assert client.engine.slots() == {LABELS: SlotCounts(1, 0, len(BODY), {Flag.NONE: 1})}


async def test_baggage_that_cannot_be_read_is_none(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: dataclasses.replace(
        forward(app.address), headers=(("baggage", "k8s.deployment.name=\xe9"),)
    )

    await net.user(client)
    await app.accept()

    await until(lambda: any(is_remote(one) for one in client.questions), "the question")
    (question,) = filter(is_remote, client.questions)
    assert isinstance(question.key, RemoteKey)
    assert question.key.baggage is None


async def test_without_an_answer_the_labels_are_those_of_whom_we_meant_to_reach(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    server.decide = lambda _: forward(app.address, reporter="destination")
    user = await net.user(client)
    served = await app.accept()
    user.end()
    served.end()
    await client.closed()

    (hop,) = doubly(gateway).hops
    assert client.engine.slots() == {hop.labels: SlotCounts(1, 0, 0, {Flag.NONE: 1})}


@pytest.mark.spec("dataplane-44")
async def test_connection_that_ends_before_the_answer_counts_as_meant(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    client.decide = lambda _: doubly(gateway, ())

    user = await net.user(client)
    assert await user.read_all() == b""

    assert (await client.closed()).reason is Reason.IO
    (hop,) = doubly(gateway).hops
    assert client.engine.slots() == {hop.labels: SlotCounts(1, 0, 0, {Flag.CONNECT: 1})}


async def test_stream_that_breaks_while_it_is_asked_about_ends_its_connection(
    client: Plane, gateway: Plane, server: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: doubly(gateway)
    client.name_remote = lambda _: None
    server.decide = lambda _: forward(app.address, reporter="destination")
    user = await net.user(client)
    await app.accept()
    await until(lambda: any(is_remote(one) for one in client.questions), "the question")

    gateway.engine.workload_remove("a")
    (question,) = filter(is_remote, client.questions)
    client.engine.reply(question.id, NAMED)  # which may be too late

    assert await user.read_all() == b""
    user.end()
    await client.closed()


def is_remote(question: Question) -> bool:
    """Whether it asks who has answered."""
    return question.kind is QuestionKind.REMOTE
