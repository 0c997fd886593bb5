# SPDX-License-Identifier: Apache-2.0
"""Commands against servers of the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ztunnel_py.__main__ import run
from ztunnel_py.admin.http import HttpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from ztunnel_py.admin.http import Answer


class Said(NamedTuple):
    """What a command has printed, and its exit status."""

    status: int
    out: str
    err: str

    def rows(self) -> list[dict[str, str]]:
        """The lines of its table, by column."""
        head, *rows = (
            [cell.strip() for cell in line.split("  ") if cell] for line in self.out.splitlines()
        )
        return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[Said]]:
    """Runs a command beside the loop."""

    async def ran(*argv: str) -> Said:
        status = await asyncio.to_thread(run, list(argv))
        return Said(status, *capsys.readouterr())

    return ran


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], str]:
    """Writes a dump to a file."""

    def save(dump: Any) -> str:
        path = tmp_path / "dump.json"
        path.write_text(dump if isinstance(dump, str) else json.dumps(dump))
        return str(path)

    return save


@contextlib.asynccontextmanager
async def answering(path: str, answer: Answer) -> AsyncIterator[str]:
    """The address of a server that answers one path."""
    server = HttpServer("test", (("127.0.0.1", 0),), {path: lambda _: answer})
    await server.open()
    yield "{}:{}".format(*server.address)
    await server.close()


@contextlib.asynccontextmanager
async def speaking(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The address of a server that says what it likes."""
    ended = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)
        writer.close()
        ended.set()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield "{}:{}".format(*server.sockets[0].getsockname())
    await asyncio.wait_for(ended.wait(), 10)
    server.close()
    await server.wait_closed()
