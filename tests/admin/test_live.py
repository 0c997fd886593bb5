# SPDX-License-Identifier: Apache-2.0
"""What lives, as the admin port lists it."""

from __future__ import annotations

import json
from typing import Any

from tests.admin.conftest import client_of
from ztunnel_py.admin.live import dump_connections, dump_tunnels
from ztunnel_py.admin.server import admin_server
from ztunnel_py.dataplane.abc import ConnView, Direction, TunnelView
from ztunnel_py.state.address import SockAddr

TRACE = "0af7651916cd43dd8448eb211c80319c"
_LOOPBACK = (("127.0.0.1", 0),)


def connection(**changes: Any) -> ConnView:
    known: dict[str, Any] = {
        "id": 0x2A,
        "workload": "cart",
        "direction": Direction.OUTBOUND,
        "src": SockAddr.parse("10.0.0.1:4000"),
        "original_dst": "10.96.0.1:80",
        "actual_dst": SockAddr.parse("10.0.0.2:15008"),
        "protocol": "HBONE",
        "age_s": 1.23456,
        "upstream_bytes": 1,
        "downstream_bytes": 2,
        "trace": TRACE,
    }
    return ConnView(**known | changes)


def tunnel(**changes: Any) -> TunnelView:
    known: dict[str, Any] = {
        "id": 7,
        "workload": "cart",
        "direction": Direction.INBOUND,
        "remote": SockAddr.parse("[::1]:9"),
        "identity": "spiffe://td/ns/n/sa/s",
        "streams": 3,
        "age_s": 2.0,
        "is_draining": True,
    }
    return TunnelView(**known | changes)


def test_a_connection_is_shown_with_its_id_as_in_the_log_and_who_stalls_it() -> None:
    view = connection(state="relaying", tunnel=7, client_stalled_s=2.5, client_waiting=100)

    assert list(dump_connections([view])) == [
        {
            "id": "000000000000002a",
            "workload": "cart",
            "direction": "outbound",
            "src": "10.0.0.1:4000",
            "originalDst": "10.96.0.1:80",
            "actualDst": "10.0.0.2:15008",
            "protocol": "HBONE",
            "state": "relaying",
            "tunnel": "0000000000000007",
            "ageSeconds": 1.235,
            "upstreamBytes": 1,
            "downstreamBytes": 2,
            "connectionId": TRACE,
            "stalled": {"client": {"seconds": 2.5, "bytes": 100}, "upstream": None},
        }
    ]


def test_what_an_engine_does_not_tell_is_null() -> None:
    (shown,) = dump_connections([connection(actual_dst=None, protocol="")])

    missing = ("actualDst", "protocol", "state", "tunnel")
    assert [shown[name] for name in missing] == [None] * 4
    assert shown["stalled"] == {"client": None, "upstream": None}


def test_a_tunnel_is_shown_with_its_windows() -> None:
    view = tunnel(worker=1, stalled_s=0.5, unsent_bytes=9, send_window=-1, receive_window=5)

    (shown,) = dump_tunnels([view])

    assert (shown["id"], shown["remote"], shown["streams"]) == ("0000000000000007", "[::1]:9", 3)
    assert (shown["sendWindow"], shown["receiveWindow"], shown["worker"]) == (-1, 5, 1)
    assert shown["stalled"] == {"seconds": 0.5, "bytes": 9}
    assert shown["draining"] is True


def test_the_oldest_comes_first() -> None:
    shown = dump_connections([connection(id=1, age_s=1), connection(id=2, age_s=9)])

    assert [one["id"][-1] for one in shown] == ["2", "1"]


async def test_the_admin_server_lists_both() -> None:
    live: dict[str, Any] = {
        "connections": lambda: [connection()],
        "tunnels": lambda: [tunnel()],
    }
    async with client_of(admin_server(dict, lambda: None, _LOOPBACK, **live)) as client:
        home = await client.ask("/")
        connections = await client.ask("/connections")
        tunnels = await client.ask("/tunnels")

    assert json.loads(connections.body) == list(dump_connections([connection()]))
    assert json.loads(tunnels.body) == list(dump_tunnels([tunnel()]))
    assert connections.content_type == "application/json"
    assert b'href="connections"' in home.body
    assert b'href="tunnels"' in home.body
