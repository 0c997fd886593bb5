# SPDX-License-Identifier: Apache-2.0
"""A connection through two engines, from an application to an application."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.plane import address, forward, through
from ztunnel_py.dataplane.abc import RecordKind, Role
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from tests.support.plane import Plane


async def test_bytes_and_half_close_pass_through_two_engines(client: Plane, server: Plane) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    app = await asyncio.start_server(shout, "127.0.0.1", 0)
    app_address = address(app.sockets[0].getsockname()[1])
    client.decide = lambda _: through(server.port(Role.INBOUND), str(app_address))
    server.decide = lambda _: forward(app_address, reporter="destination")

    reader, writer = await asyncio.open_connection(*map(str, client.port(Role.OUTBOUND)))
    writer.write(b"hello" * 100_000)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    app.close()

    assert answer == b"HELLO" * 100_000
    for plane in (client, server):
        record = await plane.record(RecordKind.CLOSED)
        assert (record.reason, record.upstream_bytes, record.downstream_bytes) == (
            Reason.OK,
            500_000,
            500_000,
        )


async def test_an_answer_follows_a_large_upload_and_its_end(client: Plane, server: Plane) -> None:
    async def measure(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(len(await reader.read())).encode())
        await writer.drain()
        writer.close()

    app = await asyncio.start_server(measure, "127.0.0.1", 0)
    app_address = address(app.sockets[0].getsockname()[1])
    client.decide = lambda _: through(server.port(Role.INBOUND), str(app_address))
    server.decide = lambda _: forward(app_address, reporter="destination")

    async def upload() -> bytes:
        reader, writer = await asyncio.open_connection(*map(str, client.port(Role.OUTBOUND)))
        writer.write(bytes(4 << 20))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer

    answers = await asyncio.gather(*(upload() for _ in range(24)))
    app.close()

    assert answers == [str(4 << 20).encode()] * 24
    assert len(client.engine.tunnels()) == 1
