# SPDX-License-Identifier: Apache-2.0
"""A connection has one id on both sides of the mesh; what strangers send gets into no log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.plane import forward
from ztunnel_py.dataplane.abc import RecordKind
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from tests.support.net import Mesh, Net
    from tests.support.plane import Plane
    from ztunnel_py.dataplane.abc import Record

ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def recorded(server: Plane, net: Net, *values: str) -> Record:
    """What is known of a stream whose request has these `traceparent`s."""
    app = await net.app()
    server.decide = lambda _: forward(app.address, reporter="destination")
    tunnel = await net.tunnel(server)
    stream = tunnel.connect(*(("traceparent", value) for value in values))
    (await app.accept()).end()
    await tunnel.status(stream)
    tunnel.data(stream, b"", end=True)
    return await server.closed()


async def test_both_sides_have_the_same_id_in_views_and_records(mesh: Mesh) -> None:
    user, app = await mesh.connect()
    (near,), (far,) = (plane.engine.connections() for plane in (mesh.client, mesh.server))
    user.end()
    app.end()

    client, server = await mesh.client.closed(), await mesh.server.closed()

    assert re.fullmatch("[0-9a-f]{32}", client.trace)
    assert re.fullmatch("[0-9a-f]{16}", client.span)
    assert (server.trace, server.span) == (client.trace, client.span)
    assert near.trace == far.trace == client.trace


async def test_connections_on_one_tunnel_have_ids_of_their_own(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.connect()

    ids = [{view.trace for view in p.engine.connections()} for p in (mesh.client, mesh.server)]

    assert len(ids[0]) == 3
    assert ids[0] == ids[1]


@pytest.mark.parametrize("flags", ["00", "01", "ff"])
async def test_an_id_that_is_sent_is_taken(server: Plane, net: Net, flags: str) -> None:
    record = await recorded(server, net, f"00-{ID}-{SPAN}-{flags}")

    assert (record.trace, record.span) == (ID, SPAN)


async def test_of_several_ids_the_first_counts(server: Plane, net: Net) -> None:
    record = await recorded(server, net, f"00-{ID}-{SPAN}-00", f"00-{ID[::-1]}-{SPAN}-00")

    assert record.trace == ID


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        (ID,),
        (f"01-{ID}-{SPAN}-00",),
        (f"00-{ID.upper()}-{SPAN}-00",),
        (f"00-{'0' * 32}-{SPAN}-00",),
        (f"00-{ID}-{'0' * 16}-00",),
        (f"00-{ID}-{SPAN}-0x",),
        (f"00-{ID}-{SPAN}-00-more",),
        (f'00-{ID[:-1]}"-{SPAN}-00',),
        (f"00-{ID[:-1]}\xe9-{SPAN}-00",),
        ("x" * 20_000,),
        ("wrong", f"00-{ID}-{SPAN}-00"),
    ],
)
async def test_without_a_valid_one_a_connection_gets_one_of_its_own(
    server: Plane, net: Net, values: tuple[str, ...]
) -> None:
    record = await recorded(server, net, *values)

    assert re.fullmatch("[0-9a-f]{32}", record.trace)
    assert record.trace not in (ID, "0" * 32)
    assert record.span == ""


async def test_a_refusal_has_the_id_of_who_is_refused(server: Plane, net: Net) -> None:
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)
    tunnel = await net.tunnel(server)

    await tunnel.status(tunnel.connect(("traceparent", f"00-{ID}-{SPAN}-00")))

    (record,) = server.of(RecordKind.DENIED)
    assert record.trace == ID
