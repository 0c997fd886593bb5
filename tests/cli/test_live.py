# SPDX-License-Identifier: Apache-2.0
"""The commands that show what lives."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.admin.test_live import TRACE, connection, tunnel
from ztunnel_py.__main__ import run
from ztunnel_py.admin.http import Answer, HttpServer
from ztunnel_py.admin.server import admin_server
from ztunnel_py.cli.table import duration, size
from ztunnel_py.dataplane.abc import Direction
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


CONNECTIONS = [
    connection(
        age_s=192,
        upstream_bytes=1_258_291,
        state="relaying",
        tunnel=7,
        client_stalled_s=4.2,
        client_waiting=65_536,
    ),
    connection(
        id=0x2B,
        workload="prices",
        direction=Direction.INBOUND,
        actual_dst=SockAddr.parse("10.96.0.1:80"),
        protocol="",
    ),
]


@pytest.fixture
async def admin() -> AsyncIterator[str]:
    """Where a proxy's admin server is."""
    server = admin_server(
        dict, lambda: None, (("127.0.0.1", 0),), lambda: CONNECTIONS, lambda: [tunnel()]
    )
    await server.open()
    yield "{}:{}".format(*server.address)
    await server.close()


async def test_connections_are_a_table(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = await asyncio.to_thread(run, ["connections", "--admin", admin])

    head, first, second = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    cells = [[cell.strip() for cell in line if cell] for line in (head, first, second)]
    assert status == 0
    assert dict(zip(cells[0], cells[1], strict=True)) == {
        "ID": "000000000000002a",
        "WORKLOAD": "cart",
        "DIRECTION": "outbound",
        "SOURCE": "10.0.0.1:4000",
        "DESTINATION": "10.96.0.1:80 -> 10.0.0.2:15008",
        "PROTOCOL": "HBONE",
        "AGE": "3m12s",
        "UP": "1.2 MiB",
        "DOWN": "2 B",
        "STATE": "relaying",
        "TUNNEL": "0000000000000007",
        "STALLED BY": "client 4.2s 64.0 KiB",
        "CONNECTION ID": TRACE,
    }
    assert cells[2][4] == "10.96.0.1:80"
    assert cells[2][-4:] == ["-", "-", "-", TRACE]


async def test_a_workload_can_be_picked_and_json_has_everything(
    admin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["connections", "--workload", "pri", "--json", "--admin", admin]

    await asyncio.to_thread(run, arguments)

    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["workload"], shown["id"]) == ("prices", "000000000000002b")


async def test_tunnels_are_a_table(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = await asyncio.to_thread(run, ["tunnels", "--admin", admin])

    head, row = capsys.readouterr().out.splitlines()
    assert status == 0
    assert " ".join(head.split()) == (
        "ID WORKLOAD DIRECTION REMOTE IDENTITY STREAMS WORKER AGE RECEIVED SENT "
        "WINDOW IN WINDOW OUT STALLED STATE"
    )
    assert row.split()[:7] == [
        *("0000000000000007", "cart", "inbound", "[::1]:9", "spiffe://td/ns/n/sa/s", "3", "0")
    ]
    assert row.endswith("draining")


def test_without_a_proxy_the_error_says_where_it_was_looked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]

    status = run(["connections", "--admin", f"127.0.0.1:{port}"])

    printed = capsys.readouterr()
    assert (status, printed.out) == (1, "")
    assert printed.err.startswith(f"error: no proxy answers at 127.0.0.1:{port}: ")
    assert "Connection refused" in printed.err


@pytest.mark.parametrize("admin", ["localhost:http", "127.0.0.1:99999"])
def test_an_address_that_makes_no_sense_is_an_error(
    admin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tunnels", "--admin", admin]) == 1
    assert f"no proxy answers at {admin}" in capsys.readouterr().err


async def test_another_server_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    pages = {
        "/connections": lambda _: Answer(200, "<html>"),
        "/tunnels": lambda _: Answer(200, "{}"),
    }
    server = HttpServer("other", (("127.0.0.1", 0),), pages)
    await server.open()
    admin = "{}:{}".format(*server.address)

    statuses = [
        await asyncio.to_thread(run, [command, "--admin", admin])
        for command in ("connections", "tunnels")
    ]
    await server.close()

    assert statuses == [1, 1]
    assert f"what answers at {admin} is not such a proxy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (59.9, "59s"),
        (192, "3m12s"),
        (7_500, "2h05m"),
        (273_600, "3d04h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (-5, "-5 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_048_575, "1.0 MiB"),
        (1_258_291, "1.2 MiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes_have_the_unit_that_fits(count: int, text: str) -> None:
    assert size(count) == text
