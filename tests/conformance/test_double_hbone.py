# SPDX-License-Identifier: Apache-2.0
"""Double HBONE: a tunnel inside of a stream of another, each with an identity of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.support.plane import CLIENT, SERVER, forward, inbound_key, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import RecordKind, Role
from ztunnel_py.decide.verdict import FORWARDED_NETWORK, Action, HopProtocol, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes

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
