# SPDX-License-Identifier: Apache-2.0
"""The end of a workload, or of all: in order, at the deadline, at once."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import GoAwayFrame

from tests.support.apps import FIN
from tests.support.frames import NO_ERROR, REFUSED_STREAM
from tests.support.plane import CLIENT, WORKLOAD, forward, through
from tests.support.tls import tls_context
from tests.support.wait import DEADLINE_S, settle, until
from ztunnel_py.dataplane.abc import DrainMode, RecordKind, Role
from ztunnel_py.errors import Flag, Reason

if TYPE_CHECKING:
    from tests.support.net import Mesh, Net
    from tests.support.plane import Plane

ANY_STREAM = 2**31 - 1


async def drained(plane: Plane, workload: str | None = None) -> None:
    """Returns when the engine says so."""
    await asyncio.wait_for(plane.engine.drained(workload), DEADLINE_S)


async def test_drain_closes_the_listeners(client: Plane, net: Net) -> None:
    client.engine.drain(None, DrainMode.GRACEFUL)

    for role in Role:
        with pytest.raises(ConnectionRefusedError):
            await net.dial(client.port(role))
    await drained(client)


@pytest.mark.spec("dataplane-102")
async def test_graceful_drain_refuses_new_connections_and_waits_for_the_running(
    mesh: Mesh,
) -> None:
    user, app = await mesh.connect()

    mesh.client.engine.drain(None, DrainMode.GRACEFUL)
    waiting = asyncio.ensure_future(drained(mesh.client))
    with pytest.raises(ConnectionRefusedError):
        await mesh.connect()
    user.send(b"still")
    assert await app.read(5) == b"still"
    await settle()
    assert not waiting.done()
    user.end()
    app.end()

    await waiting
    assert (await mesh.client.closed()).reason is Reason.OK


@pytest.mark.spec("dataplane-103")
@pytest.mark.parametrize("kind", ["tcp", "hbone"])
async def test_connection_unfinished_at_the_deadline_is_drained_and_not_failed(
    client: Plane, net: Net, kind: str
) -> None:
    server, app = await net.server(), await net.app()
    client.decide = lambda _: forward(app.address) if kind == "tcp" else through(server.address)
    user = await net.user(client)
    await until(lambda: bool(app.accepted or server.tunnels), "the upstream")
    client.engine.drain(None, DrainMode.GRACEFUL)

    client.engine.drain(None, DrainMode.IMMEDIATE)

    record = await client.closed()
    assert record.reason.describe(record.detail) == "connection closed due to connection drain"
    assert client.counts.closed == {Flag.NONE: 1}
    assert await user.ending() == FIN
    await drained(client)


@pytest.mark.spec("dataplane-105")
async def test_drained_inbound_tunnel_says_goaway_twice_and_finishes_its_streams(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    served = await app.accept()

    server.engine.drain(None, DrainMode.GRACEFUL)
    first, second = await tunnel.goaway(1), await tunnel.goaway(2)
    tunnel.data(stream, b"still")
    assert await served.read(5) == b"still"
    served.send(b"here")
    served.end()
    assert await tunnel.end(stream) == b"here"
    assert not tunnel.is_closed
    tunnel.data(stream, b"", end=True)

    await tunnel.closed()
    assert (first.last_stream_id, first.error_code) == (ANY_STREAM, NO_ERROR)
    assert (second.last_stream_id, second.error_code) == (stream, NO_ERROR)
    await drained(server)


async def test_stream_opened_before_the_client_knows_of_the_drain_is_served(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    tunnel.answers_pings = False

    server.engine.drain(None, DrainMode.GRACEFUL)
    await tunnel.goaway()
    stream = tunnel.connect()

    assert await tunnel.status(stream) == 200


async def test_stream_opened_after_the_drain_was_confirmed_is_refused(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    await tunnel.status(tunnel.connect())
    server.engine.drain(None, DrainMode.GRACEFUL)
    await tunnel.goaway(2)

    late = tunnel.connect()

    assert await tunnel.reset(late) == REFUSED_STREAM
    assert len(server.flows) == 1


async def test_idle_inbound_tunnel_closes_once_its_drain_is_confirmed(
    server: Plane, net: Net
) -> None:
    tunnel = await net.tunnel(server)

    server.engine.drain(None, DrainMode.GRACEFUL)

    await tunnel.closed()
    assert {frame.error_code for frame in tunnel.of(GoAwayFrame)} == {NO_ERROR}
    await drained(server)


async def test_client_that_never_confirms_the_drain_is_ended_by_its_ping(
    server: Plane, net: Net
) -> None:
    tunnel = await net.tunnel(server)
    tunnel.answers_pings = False
    server.engine.drain(None, DrainMode.GRACEFUL)
    await tunnel.goaway()

    server.advance(10)
    await settle()
    server.advance(20)

    await tunnel.closed()
    await drained(server)


async def test_handshake_that_runs_is_finished_and_its_tunnel_drained(
    server: Plane, net: Net
) -> None:
    tcp = await net.dial(server.port(Role.INBOUND))
    received, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = tls_context(net.certify(CLIENT), is_server=False).wrap_bio(received, said)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    tcp.send(said.read())
    received.write(await tcp.read_some())

    server.engine.drain(None, DrainMode.GRACEFUL)
    tls.do_handshake()
    tcp.send(said.read())

    await until(lambda: bool(server.engine.tunnels()), "the tunnel")
    assert all(view.is_draining for view in server.engine.tunnels())
    tcp.close()
    await drained(server)
    assert not server.of(RecordKind.DENIED)


async def test_pooled_tunnel_closes_when_the_last_connection_of_a_drain_is_over(
    client: Plane, net: Net
) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    client.engine.drain(None, DrainMode.GRACEFUL)
    await settle()
    assert not tunnel.is_closed

    user.end()

    await tunnel.closed()
    await drained(client)


async def test_immediate_drain_ends_streams_tunnels_and_handshakes(server: Plane, net: Net) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    await tunnel.status(tunnel.connect())
    served = await app.accept()
    shaking = await net.dial(server.port(Role.INBOUND))
    await until(lambda: server.sockets_open("destination") == 2, "the accept")

    server.engine.drain(None, DrainMode.IMMEDIATE)

    await tunnel.closed()
    assert await served.ending() == FIN
    await shaking.ending()
    assert (await server.closed()).reason is Reason.DRAINED
    assert (await server.denied()).reason is Reason.DRAINED
    await drained(server)


async def test_immediate_drain_ends_connections_that_are_being_decided_or_dialled(
    client: Plane, net: Net
) -> None:
    hole = net.hole()
    asking = await net.user(client)
    await client.asked()
    client.decide = lambda _: forward(hole)
    dialling = await net.user(client)
    await net.dialling(hole)

    client.engine.drain(None, DrainMode.IMMEDIATE)

    assert await asking.ending() == await dialling.ending() == FIN
    assert (await client.closed()).reason is Reason.DRAINED
    assert (await client.denied()).reason is Reason.DRAINED
    await drained(client)


async def test_drain_of_one_workload_leaves_the_other_alone(client: Plane, net: Net) -> None:
    client.add("b")
    app, app_of_b = await net.app(), await net.app()
    client.decide = lambda question: forward(
        (app_of_b if question.workload == "b" else app).address
    )
    user, other = await net.user(client), await net.dial(client.port(Role.OUTBOUND, "b"))
    await client.asked(2)

    client.engine.drain("b", DrainMode.IMMEDIATE)

    assert await other.ending() == FIN
    await drained(client, "b")
    user.send(b"mine")
    assert await (await app.accept()).read(4) == b"mine"
    await net.user(client)


@pytest.mark.spec("dataplane-104")
async def test_removed_workload_ends_its_connections_at_once_and_no_others(
    client: Plane, net: Net
) -> None:
    client.add("b")
    server = await net.server()
    client.decide = lambda _: through(server.address)
    user, other = await net.user(client), await net.dial(client.port(Role.OUTBOUND, "b"))
    await until(lambda: len(client.engine.tunnels()) == 2, "tunnels")

    client.engine.workload_remove("b")

    assert await other.ending() == FIN
    assert (await client.closed()).reason is Reason.DRAINED
    assert [view.workload for view in client.engine.tunnels()] == [WORKLOAD]
    assert [view.src for view in client.engine.connections()] == [user.local]


async def test_connections_waiting_in_the_queue_at_the_drain_are_served(
    client: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: forward(app.address)
    host, port = client.port(Role.OUTBOUND)
    with socket.create_connection((str(host), port)) as queued:
        client.engine.drain(None, DrainMode.GRACEFUL)  # before the loop could accept it

        served = await app.accept()
        queued.send(b"queued")
        assert await served.read(6) == b"queued"
        served.close()
    await drained(client)


async def test_drain_may_be_said_again(client: Plane) -> None:
    for mode in (DrainMode.GRACEFUL, DrainMode.GRACEFUL, DrainMode.IMMEDIATE, DrainMode.IMMEDIATE):
        client.engine.drain(None, mode)

    await drained(client)


async def test_drained_returns_at_once_if_nothing_lives(client: Plane) -> None:
    await drained(client)
    await drained(client, WORKLOAD)
