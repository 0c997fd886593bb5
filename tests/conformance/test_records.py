# SPDX-License-Identifier: Apache-2.0
"""What is counted and reported: slots, gauges, records and what lives."""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.support.plane import CLIENT, SERVER, WORKLOAD, forward
from tests.support.wait import until
from ztunnel_py.dataplane.abc import Direction, RecordKind, Role
from ztunnel_py.decide.verdict import Action, Hop, HopProtocol, LogFields, TrafficLabels, Verdict
from ztunnel_py.errors import Flag, Reason

if TYPE_CHECKING:
    from tests.support.net import Mesh, Net
    from tests.support.plane import Plane


async def converse(mesh: Mesh) -> None:
    """11 bytes up, 22 down, and an orderly end."""
    user, app = await mesh.connect()
    user.send(b"u" * 11)
    user.end()
    assert len(await app.read_all()) == 11
    app.send(b"d" * 22)
    app.end()
    assert len(await user.read_all()) == 22
    user.close()
    app.close()


@pytest.mark.spec("dataplane-97")
async def test_bytes_are_counted_by_direction_in_records_and_slots(mesh: Mesh) -> None:
    await converse(mesh)

    for plane in (mesh.client, mesh.server):
        record = await plane.closed()
        assert (record.upstream_bytes, record.downstream_bytes) == (11, 22)
        assert (plane.counts.received, plane.counts.sent) == (11, 22)


@pytest.mark.spec("dataplane-110")
async def test_completed_connection_is_opened_once_closed_once_and_leaves_the_gauge(
    mesh: Mesh,
) -> None:
    await converse(mesh)

    for plane in (mesh.client, mesh.server):
        await plane.closed()
        assert (plane.counts.opened, plane.counts.closed) == (1, {Flag.NONE: 1})
    await until(lambda: mesh.client.sockets_open("source") == 0, "the gauge")
    assert mesh.client.event("sockets_opened_source") == 1


async def test_tunnel_is_one_socket_however_many_streams_it_carries(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.connect()

    assert mesh.server.sockets_open("destination") == 1
    assert mesh.client.sockets_open("source") == 3
    assert mesh.server.sockets_open("source") == 0


async def test_outbound_record_names_hop_tunnel_and_steps(mesh: Mesh) -> None:
    user, app = await mesh.connect()
    user.end()
    app.end()

    record = await mesh.client.closed()

    assert record.kind is RecordKind.CLOSED
    assert (record.workload, record.direction) == (WORKLOAD, Direction.OUTBOUND)
    assert (record.src, record.original_dst) == (user.local, user.remote)
    assert record.dst == mesh.server.port(Role.INBOUND)
    assert (record.hbone_addr, record.protocol) == (str(mesh.app.address), "HBONE")
    assert record.tunnel_reused is False
    steps = record.steps
    assert steps is not None
    assert (
        0
        < steps.accepted_ns
        <= steps.decided_ns
        <= steps.tunnel_ns
        <= steps.connected_ns
        <= steps.closed_ns
    )


async def test_inbound_record_names_tunnel_authority_and_application(mesh: Mesh) -> None:
    user, app = await mesh.connect()
    (view,) = mesh.server.engine.tunnels()
    user.end()
    app.end()

    record = await mesh.server.closed()

    assert (record.direction, record.src) == (Direction.INBOUND, view.remote)
    assert record.dst == mesh.server.port(Role.INBOUND)
    assert (record.hbone_addr, record.app) == (str(mesh.app.address), mesh.app.address)
    assert view.identity == str(CLIENT)
    assert record.steps is not None
    assert record.steps.connected_ns >= record.steps.decided_ns > 0


async def test_record_carries_log_fields_policy_and_workload_of_its_verdict(
    client: Plane, net: Net
) -> None:
    app = await net.app()
    app.close()
    fields = LogFields(src_workload="web", dst_service="shop")
    hop = Hop(HopProtocol.TCP, app.address, TrafficLabels("source", "web"), fields)
    verdict = Verdict(Action.FORWARD, hops=(hop,), policy="allowed by a/b", workload="ns/web")
    client.decide = lambda _: verdict

    await net.user(client)

    record = await client.closed()
    assert (record.log, record.policy, record.workload_name) == (fields, "allowed by a/b", "ns/web")
    assert list(client.engine.slots()) == [hop.labels]


async def test_opened_comes_before_closed_with_the_same_id(mesh: Mesh) -> None:
    await converse(mesh)
    await mesh.client.closed()

    kinds = [(record.kind, record.conn) for record in mesh.client.records]
    assert kinds[0][0] is RecordKind.OPENED
    assert kinds[1] == (RecordKind.CLOSED, kinds[0][1])


async def test_record_is_there_before_the_client_knows_of_the_denial(
    server: Plane, net: Net
) -> None:
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)
    tunnel = await net.tunnel(server)

    await tunnel.status(tunnel.connect())

    readable, _, _ = select.select([server.engine.record_fd], [], [], 0)
    assert readable or server.of(RecordKind.DENIED)


async def test_living_connection_is_listed_with_its_bytes(mesh: Mesh) -> None:
    user, app = await mesh.connect()
    user.send(b"12345")
    await app.read(5)

    (view,) = mesh.client.engine.connections()

    assert (view.workload, view.direction, view.src) == (WORKLOAD, Direction.OUTBOUND, user.local)
    assert (view.original_dst, view.actual_dst) == (
        str(user.remote),
        mesh.server.port(Role.INBOUND),
    )
    assert (view.protocol, view.upstream_bytes, view.downstream_bytes) == ("HBONE", 5, 0)
    (inbound,) = mesh.server.engine.connections()
    assert (inbound.direction, inbound.protocol) == (Direction.INBOUND, "HBONE")
    assert (inbound.original_dst, inbound.actual_dst) == (str(mesh.app.address), mesh.app.address)


async def test_bytes_that_could_not_be_written_are_not_counted(client: Plane, net: Net) -> None:
    app = await net.app()
    client.decide = lambda _: forward(app.address)
    user = await net.user(client)
    served = await app.accept()
    user.send(bytes(32 << 20))
    await until(lambda: client.engine.connections()[0].upstream_bytes > 0, "bytes")

    served.reset()
    user.close()

    record = await client.closed()
    assert record.upstream_bytes < 32 << 20
    assert record.upstream_bytes == client.counts.received


async def test_many_connections_at_once_are_each_recorded_once(client: Plane, net: Net) -> None:
    gone = await net.app()
    gone.close()
    client.decide = lambda _: forward(gone.address)

    crowd = await asyncio.gather(*(net.user(client) for _ in range(100)))
    await asyncio.gather(*(user.ending() for user in crowd))

    await client.closed(100)
    assert len({record.conn for record in client.of(RecordKind.CLOSED)}) == 100
    assert client.counts.closed == {Flag.CONNECT: 100}


async def test_records_are_drained_in_portions(client: Plane, net: Net) -> None:
    asyncio.get_running_loop().remove_reader(client.engine.record_fd)
    client.decide = lambda _: Verdict.deny(Reason.NO_ROUTE)
    for _ in range(3):
        await (await net.user(client)).ending()

    first, second = client.engine.recv_records(2), client.engine.recv_records(2)

    assert [len(first), len(second)] == [2, 1]
    assert client.engine.recv_records(2) == []
    asyncio.get_running_loop().add_reader(client.engine.record_fd, lambda: None)


async def test_closed_connections_leave_no_descriptor_behind(mesh: Mesh) -> None:
    await converse(mesh)
    await mesh.server.closed()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(20):
        await converse(mesh)
    await mesh.server.closed(21)
    await mesh.client.closed(21)

    await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors to close")


async def test_server_identity_is_shown_for_a_dialled_tunnel(mesh: Mesh) -> None:
    await mesh.connect()

    (view,) = mesh.client.engine.tunnels()

    assert (view.identity, view.streams) == (str(SERVER), 1)
