# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to admin, stats and readiness: it has bounds, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ztunnel_py.admin import http
from ztunnel_py.admin.readiness import Readiness, readiness_server
from ztunnel_py.admin.server import admin_server
from ztunnel_py.admin.stats import stats_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from ztunnel_py.admin.http import HttpServer

_LOOPBACK = (("127.0.0.1", 0),)
_GOOD = {"admin": "/config_dump", "stats": "/metrics", "readiness": "/healthz/ready"}


class Target(NamedTuple):
    """A server, and a path that it answers."""

    server: HttpServer
    path: str

    async def said(self, data: bytes) -> bytes:
        """What it answers until it closes."""
        reader, writer = await asyncio.open_connection(*self.server.address)
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def is_well(self) -> bool:
        """It answers a good request."""
        request = f"GET {self.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        return (await self.said(request.encode())).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.fixture
def patience_s() -> float:
    """For how long a server waits for a header."""
    return 0.4


async def _lines() -> Iterable[str | None]:
    return ["# EOF\n"]


@pytest.fixture(params=["admin", "stats", "readiness"])
async def target(
    request: pytest.FixtureRequest, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Target]:
    """Each of the three."""
    monkeypatch.setattr(http, "_HEADER_TIMEOUT_S", patience_s)
    server = {
        "admin": lambda: admin_server(dict, lambda: None, _LOOPBACK),
        "stats": lambda: stats_server(_lines, _LOOPBACK),
        "readiness": lambda: readiness_server(Readiness(), _LOOPBACK),
    }[request.param]()
    await server.open()
    yield Target(server, _GOOD[request.param])
    await server.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n c\x00d\r\n\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
    ],
    ids=[
        *("tls", "http2", "zeros", "version", "no path", "zero in method", "no colon", "negative"),
        *("two lengths", "smuggled", "folded", "long path", "long header", "many headers"),
    ],
)
async def test_malformed_and_oversized_requests_are_refused(target: Target, data: bytes) -> None:
    answer = await target.said(data)

    assert answer == b"" or answer.split(b"\r\n")[0].split()[1] in (b"400", b"404", b"505")
    assert await target.is_well()


async def test_header_that_drips_is_cut_off(target: Target) -> None:
    reader, writer = await asyncio.open_connection(*target.server.address)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(8):
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1000), 0.05)

    writer.close()
    assert await target.is_well()


@pytest.mark.parametrize("length", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_body_that_never_comes_is_not_waited_for(target: Target, length: bytes) -> None:
    begun = asyncio.get_running_loop().time()

    path = target.path.encode()
    answer = await target.said(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 ")
    assert asyncio.get_running_loop().time() - begun < 4


async def test_body_without_end_is_not_taken(target: Target) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader, writer = await asyncio.open_connection(*target.server.address)
    writer.write(
        f"POST {target.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(8):
            while True:
                writer.write(chunk)
                await writer.drain()

    writer.close()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 * 1024
    assert await target.is_well()
    assert reader is not None


@pytest.mark.parametrize("patience_s", [2.0])
async def test_connections_are_bounded_and_make_room_again(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_MOST_CONNECTIONS", 20)
    loop = asyncio.get_running_loop()

    async def connected() -> socket.socket:
        made = socket.socket()
        made.setblocking(False)
        await loop.sock_connect(made, target.server.address)
        return made

    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(await connected()) for _ in range(20)]
        with await connected() as refused:
            assert await asyncio.wait_for(loop.sock_recv(refused, 1), 10) == b""
        for one in held:
            with pytest.raises(BlockingIOError):
                one.recv(1)

    # The server takes a closed side of a connection for no end of it, until its patience is.
    async with asyncio.timeout(10):
        while not await target.is_well():  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.01)
