# SPDX-License-Identifier: Apache-2.0
"""What admin, stats and readiness servers have in common."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest

from ztunnel_py.admin import http
from ztunnel_py.admin.http import Answer, HttpServer
from ztunnel_py.errors import StartError
from ztunnel_py.telemetry import log

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.admin.http import Handler

_LOOPBACK = (("127.0.0.1", 0),)


def _server(handler: Handler) -> HttpServer:
    return HttpServer("test", _LOOPBACK, {"/known": handler})


async def _raw(server: HttpServer, request: bytes, *, is_half_closed: bool = False) -> bytes:
    """All bytes that the server answers until it closes."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(request)
    if is_half_closed:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_unknown_path_is_404_without_a_body() -> None:
    server = _server(lambda _: Answer(200, "x"))
    await server.open()

    answer = await _raw(server, b"GET /unknown HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await server.close()

    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.endswith(b"\r\n\r\n")


async def test_handler_that_fails_is_500_with_its_text() -> None:
    def fail(_: object) -> Answer:
        raise ValueError("no state yet")

    server = _server(fail)
    await server.open()

    answer = await _raw(server, b"GET /known HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await server.close()

    assert answer.startswith(b"HTTP/1.1 500")
    assert answer.endswith(b"\r\n\r\nno state yet")


async def test_client_that_has_closed_its_side_gets_its_answer() -> None:
    async def slowly(_: object) -> Answer:
        await asyncio.sleep(0.05)
        return Answer(200, "late\n")

    server = _server(slowly)
    await server.open()

    request = b"GET /known HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await _raw(server, request, is_half_closed=True)
    await server.close()

    assert answer.endswith(b"late\n")


@pytest.mark.parametrize(
    "request_", [b"", b"GET /known HTTP/1.1\r\n", b"GET /known HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_connection_without_a_whole_header_is_closed_at_the_timeout(
    request_: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_HEADER_TIMEOUT_S", 0.3)
    server = _server(lambda _: Answer(200, "x"))
    await server.open()
    loop = asyncio.get_running_loop()
    started = loop.time()

    await _raw(server, request_)
    elapsed = loop.time() - started
    await server.close()

    assert 0.2 < elapsed < 5


async def test_header_of_more_than_8_kib_is_refused() -> None:
    server = _server(lambda _: Answer(200, "x"))
    await server.open()

    request = b"GET /known HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n"
    answer = await _raw(server, request)
    await server.close()

    assert answer.split(b"\r\n")[0].endswith(b" 400 Bad Request")


async def test_occupied_port_is_a_start_error_that_names_it_and_leaves_nothing_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        server = HttpServer("test", (("127.0.0.1", other), ("127.0.0.1", port)), {})

        with pytest.raises(StartError, match=f"failed to bind to address 127.0.0.1:{port}: "):
            await server.open()

        socket.create_server(("127.0.0.1", other)).close()


async def test_wildcard_serves_both_families() -> None:
    server = HttpServer("test", (("::", 0),), {"/known": lambda _: Answer(200, "x")})
    await server.open()
    port = server.address[1]

    async with aiohttp.ClientSession() as client:
        v4 = await client.get(f"http://127.0.0.1:{port}/known")
        v6 = await client.get(f"http://[::1]:{port}/known")
    await server.close()

    assert (v4.status, v6.status) == (200, 200)


async def test_close_lets_a_request_in_flight_finish_and_refuses_new_ones() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(_: object) -> Answer:
        entered.set()
        await release.wait()
        return Answer(200, "finished\n")

    server = _server(wait)
    await server.open()
    address = server.address
    request = b"GET /known HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    running = asyncio.ensure_future(_raw(server, request))
    await entered.wait()

    closing = asyncio.ensure_future(server.close())
    await asyncio.sleep(0)
    with pytest.raises(OSError):
        await asyncio.open_connection(*address)
    release.set()

    assert (await running).endswith(b"finished\n")
    await closing


async def test_life_is_logged_with_address_and_component(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        log.configure(fd=file.fileno())
        server = _server(lambda _: Answer(200, "x"))
        await server.open()
        address = "{}:{}".format(*server.address)
        await server.close()
        log.close()

    lines = [line.split("\t")[1:] for line in path.read_text().splitlines()]
    fields = f'address={address} component="test"'
    assert lines == [
        ["info", "hyper_util", "listener established", fields],
        ["info", "hyper_util", "listener drained", fields],
    ]
