# SPDX-License-Identifier: Apache-2.0
"""What lives can be looked at on every engine, under the ids that the log has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.conftest import mesh
from ztunnel_py.admin.live import dump_connections, dump_tunnels
from ztunnel_py.dataplane.abc import Role

if TYPE_CHECKING:
    from tests.support.net import Mesh

__all__ = ["mesh"]


async def test_a_connection_has_one_id_while_it_lives_and_in_its_record(mesh: Mesh) -> None:
    user, served = await mesh.connect()
    user.send(b"x" * 100)
    await served.read(100)

    (shown,) = dump_connections(mesh.client.engine.connections())
    user.end()
    served.end()
    record = await mesh.client.closed()

    assert shown["id"] == f"{record.conn:016x}"
    assert (shown["direction"], shown["src"]) == ("outbound", str(user.local))
    assert shown["actualDst"] == str(mesh.server.port(Role.INBOUND))
    assert (shown["protocol"], shown["upstreamBytes"]) == ("HBONE", 100)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_tunnel_is_shown_at_both_ends(mesh: Mesh, side: str) -> None:
    await mesh.connect()
    plane = getattr(mesh, side)

    (shown,) = dump_tunnels(plane.engine.tunnels())

    other = "server" if side == "client" else "client"
    assert shown["identity"] == f"spiffe://cluster.local/ns/ns/sa/{other}"
    assert (shown["streams"], shown["draining"]) == (1, False)
    assert shown["direction"] == ("outbound" if side == "client" else "inbound")
