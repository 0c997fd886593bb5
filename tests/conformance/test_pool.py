# SPDX-License-Identifier: Apache-2.0
"""How connections share tunnels, and how tunnels end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.frames import MAX_STREAMS, NO_ERROR
from tests.support.plane import CLIENT, SERVER, forward, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import Direction, RecordKind, Role
from ztunnel_py.decide.verdict import HopProtocol
from ztunnel_py.errors import Flag, Reason
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from tests.support.apps import Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from tests.support.wire import WireServer

OTHER = Identity("cluster.local", "ns", "other")


async def users(net: Net, plane: Plane, server: WireServer, count: int) -> list[Tcp]:
    """Users that connect at once and all got their stream and its response."""
    before = served(server)
    found = await asyncio.gather(*(net.user(plane) for _ in range(count)))
    await until(lambda: served(server) == before + count, f"{count} streams")
    for tunnel in server.tunnels:
        if not tunnel.is_closed:
            await tunnel.fence()
    return found


def served(server: WireServer) -> int:
    """Streams that a server has seen."""
    return sum(len(tunnel.headers) for tunnel in server.tunnels)


async def gone(plane: Plane, leaving: list[Tcp]) -> None:
    """Users that leave, and what is left of their connections."""
    remaining = len(plane.engine.connections()) - len(leaving)
    for user in leaving:
        user.end()
    await until(lambda: len(plane.engine.connections()) == remaining, "connections to end")


@pytest.fixture
async def upstream(net: Net) -> WireServer:
    """A server that answers every CONNECT with 200 and every end with an end."""
    return await net.server()


@pytest.mark.spec("dataplane-52")
async def test_two_connections_and_two_later_ones_share_one_tunnel(
    planes: Planes, net: Net, upstream: WireServer
) -> None:
    plane = await planes(CLIENT, pool_max_streams=3)
    plane.decide = lambda _: through(upstream.address)

    first = await users(net, plane, upstream, 2)
    assert len(upstream.tunnels) == 1
    await gone(plane, first)
    await users(net, plane, upstream, 2)

    assert len(upstream.tunnels) == 1


@pytest.mark.spec("dataplane-53")
async def test_four_connections_need_two_tunnels_of_two(
    planes: Planes, net: Net, upstream: WireServer
) -> None:
    plane = await planes(CLIENT, pool_max_streams=2)
    plane.decide = lambda _: through(upstream.address)

    await users(net, plane, upstream, 4)

    assert [len(tunnel.headers) for tunnel in upstream.tunnels] == [2, 2]


@pytest.mark.spec("dataplane-54")
async def test_limit_of_one_gives_each_connection_its_tunnel(
    planes: Planes, net: Net, upstream: WireServer
) -> None:
    plane = await planes(CLIENT, pool_max_streams=1)
    plane.decide = lambda _: through(upstream.address)

    await users(net, plane, upstream, 3)

    assert [len(tunnel.headers) for tunnel in upstream.tunnels] == [1, 1, 1]


@pytest.mark.spec("dataplane-55")
async def test_hundred_first_connections_at_once_make_one_tunnel(
    planes: Planes, net: Net, upstream: WireServer
) -> None:
    plane = await planes(CLIENT, pool_max_streams=101)
    plane.decide = lambda _: through(upstream.address)

    await users(net, plane, upstream, 100)

    assert len(upstream.tunnels) == 1
    assert len(upstream.tunnels[0].headers) == 100


@pytest.mark.spec("dataplane-56")
async def test_tunnels_are_not_shared_between_source_addresses(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)

    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
        await net.user(client, source)
    await until(lambda: served(upstream) == 3, "streams")

    assert len(upstream.tunnels) == 2


@pytest.mark.spec("dataplane-56")
async def test_tunnels_are_not_shared_between_lists_of_identities(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    lists = [(SERVER,), (SERVER, OTHER), (OTHER, SERVER)]
    remaining = iter(lists)
    client.decide = lambda _: through(upstream.address, sans=next(remaining))

    await users(net, client, upstream, 3)

    assert len(upstream.tunnels) == 3


@pytest.mark.spec("dataplane-56")
async def test_tunnels_are_not_shared_between_next_hops(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    second = await net.server()
    hops = iter([upstream.address, second.address])
    client.decide = lambda _: through(next(hops))

    await net.user(client)
    await net.user(client)
    await until(lambda: served(upstream) + served(second) == 2, "streams")

    assert (len(upstream.tunnels), len(second.tunnels)) == (1, 1)


@pytest.mark.spec("dataplane-57")
async def test_tunnels_are_not_shared_between_workloads(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.add("b")
    client.decide = lambda _: through(upstream.address)

    await net.user(client)
    await net.dial(client.port(Role.OUTBOUND, "b"))
    await until(lambda: served(upstream) == 2, "streams")

    assert len(upstream.tunnels) == 2
    assert {view.workload for view in client.engine.tunnels()} == {"a", "b"}


@pytest.mark.spec("dataplane-58")
async def test_idle_tunnel_closes_with_goaway_after_five_minutes(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)
    await gone(client, await users(net, client, upstream, 1))
    tunnel = await upstream.tunnel()

    await client.pass_time(295, tunnel)
    assert not tunnel.is_closed
    client.advance(5)

    goaway = await tunnel.goaway()
    assert goaway.error_code == NO_ERROR
    await tunnel.closed()


@pytest.mark.spec("dataplane-58")
async def test_tunnel_with_a_stream_outlives_the_idle_time(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)
    (user,) = await users(net, client, upstream, 1)
    tunnel = await upstream.tunnel()

    await client.pass_time(400, tunnel)
    tunnel.data(1, b"late")

    assert await user.read(4) == b"late"


async def test_use_restarts_the_idle_time(client: Plane, net: Net, upstream: WireServer) -> None:
    client.decide = lambda _: through(upstream.address)
    await gone(client, await users(net, client, upstream, 1))
    tunnel = await upstream.tunnel()
    await client.pass_time(290, tunnel)

    await gone(client, await users(net, client, upstream, 1))
    await client.pass_time(290, tunnel)

    assert len(upstream.tunnels) == 1
    assert not tunnel.is_closed


@pytest.mark.spec("dataplane-59")
async def test_goaway_sends_the_next_connection_elsewhere_and_lets_the_running_finish(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)
    (running,) = await users(net, client, upstream, 1)
    tunnel = await upstream.tunnel()

    tunnel.say(tunnel.make.goaway(1))
    await tunnel.fence()
    await users(net, client, upstream, 1)

    assert [len(one.headers) for one in upstream.tunnels] == [1, 1]
    running.send(b"on")
    assert await tunnel.body(1, 2) == b"on"
    running.end()
    await tunnel.closed()


async def test_connection_refused_by_goaway_is_retried_on_a_new_tunnel(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)
    await users(net, client, upstream, 1)
    tunnel = await upstream.tunnel()
    tunnel.responds = None
    await net.user(client)
    await tunnel.asked(2)

    tunnel.say(tunnel.make.goaway(1))
    second = await upstream.tunnel(2)

    await second.asked()
    assert len(client.engine.connections()) == 2


async def test_connection_whose_new_tunnel_goes_away_at_once_is_not_retried(
    client: Plane, net: Net
) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    await tunnel.asked()

    tunnel.say(tunnel.make.goaway(0))

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.H2
    assert len(server.tunnels) == 1


@pytest.mark.parametrize("limit", [1, 2])
async def test_tunnel_takes_no_more_streams_than_its_server_allows(
    client: Plane, net: Net, limit: int
) -> None:
    server = await net.server(settings={MAX_STREAMS: limit})
    client.decide = lambda _: through(server.address)

    for _ in range(4):
        await users(net, client, server, 1)

    assert [len(tunnel.headers) for tunnel in server.tunnels] == [limit] * (4 // limit)


async def test_first_connections_at_once_wait_for_streams_that_the_server_allows(
    client: Plane, net: Net
) -> None:
    server = await net.server(settings={MAX_STREAMS: 1})
    crowd = [await net.user(client) for _ in range(3)]
    await client.asked(3)

    client.answer(through(server.address))
    for user in crowd:
        user.end()

    for count, user in enumerate(crowd, 1):
        assert await user.read_all() == b""
        assert (await client.closed(count)).reason is Reason.OK
    assert [len(tunnel.headers) for tunnel in server.tunnels] == [3]


async def test_connection_that_gets_no_stream_is_given_up_at_the_deadline(
    client: Plane, net: Net
) -> None:
    server = await net.server(settings={MAX_STREAMS: 0}, responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    await (await server.tunnel()).fence()

    client.advance(10)

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.H2


async def test_records_say_whether_the_tunnel_was_there(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)

    for _ in range(2):
        await gone(client, await users(net, client, upstream, 1))

    assert (await client.closed(1)).tunnel_reused is False
    assert (await client.closed(2)).tunnel_reused is True


async def test_tunnels_are_listed_with_identity_and_streams(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)
    await users(net, client, upstream, 2)

    (view,) = client.engine.tunnels()

    assert (view.direction, view.remote, view.identity, view.streams, view.is_draining) == (
        Direction.OUTBOUND,
        upstream.address,
        str(SERVER),
        2,
        False,
    )
    assert {one.protocol for one in client.engine.connections()} == {HopProtocol.HBONE.value}


async def test_one_failed_handshake_gives_every_waiter_its_reason(client: Plane, net: Net) -> None:
    server = await net.server(OTHER)
    crowd = [await net.user(client) for _ in range(10)]
    await client.asked(10)

    client.answer(through(server.address))

    assert [await user.read_all() for user in crowd] == [b""] * 10
    await client.closed(10)
    records = client.of(RecordKind.CLOSED)
    assert {(one.reason, one.detail) for one in records} == {(Reason.IO, records[0].detail)}
    assert client.counts.closed == {Flag.CONNECT: 10}
    assert server.accepted == 1


async def test_waiter_that_goes_away_does_not_end_the_handshake_of_the_others(
    client: Plane, net: Net
) -> None:
    app = await net.app()  # holds the handshake up
    client.decide = lambda _: through(app.address)
    for _ in range(2):
        await net.user(client)
    held = await app.accept()
    await until(lambda: len(client.engine.connections()) == 2, "both connections")
    first, second = sorted(view.id for view in client.engine.connections())

    client.engine.conn_kill([first], Reason.POLICY_CHANGED)
    await client.closed()
    await settle()

    assert [view.id for view in client.engine.connections()] == [second]
    held.close()
    assert (await client.closed(2)).reason is Reason.IO


async def test_next_connection_after_a_failed_handshake_dials_anew(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    wrong = await net.server(OTHER)
    hops = iter([wrong.address, wrong.address])
    client.decide = lambda _: through(next(hops))

    for _ in range(2):
        assert await (await net.user(client)).read_all() == b""

    assert client.counts.closed == {Flag.CONNECT: 2}


async def test_abrupt_end_of_a_tunnel_reads_as_an_end_on_each_of_its_connections(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)
    crowd = await users(net, client, upstream, 5)

    upstream.tunnels[0].hang_up()

    for user in crowd:
        assert await user.read_all() == b""
    assert not client.engine.tunnels()
    await gone(client, crowd)
    await client.closed(5)
    assert {record.reason for record in client.of(RecordKind.CLOSED)} == {Reason.OK}


async def test_connections_idle_for_hours_go_on(
    client: Plane, net: Net, upstream: WireServer
) -> None:
    client.decide = lambda _: through(upstream.address)
    (user,) = await users(net, client, upstream, 1)
    tunnel = await upstream.tunnel()

    await client.pass_time(6 * 3600, tunnel)
    user.send(b"ping")
    assert await tunnel.body(1, 4) == b"ping"
    tunnel.data(1, b"pong")

    assert await user.read(4) == b"pong"


async def test_served_connections_idle_for_hours_go_on(server: Plane, net: Net) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    served = await app.accept()
    assert await tunnel.status(stream) == 200

    await server.pass_time(6 * 3600, tunnel)
    tunnel.data(stream, b"ping")
    assert await served.read(4) == b"ping"
    served.send(b"pong")

    assert await tunnel.body(stream, 4) == b"pong"
