# SPDX-License-Identifier: Apache-2.0
"""What is between a client and its server: bytes pass until somebody cuts it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CHUNK = 1 << 14


class Cable:
    """A TCP relay on loopback."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut_at: int | None = None
        self.pause_s = 0.0
        """How long the server's bytes rest after every few KiB."""
        self.received = 0
        """Bytes that have come from the server, over all connections."""
        self.port = 0

    @property
    def address(self) -> str:
        """Where clients find the server at the other end."""
        return f"https://localhost:{self.port}"

    def cut_after(self, size: int) -> None:
        """Breaks every connection once `size` more bytes have come from the server; once."""
        self._cut_at = self.received + size

    async def relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection, both ways, until one side ends or it is cut."""
        server, to_server = await asyncio.open_connection("127.0.0.1", self._to_port)
        writers = {to_client, to_server}
        self._writers |= writers
        sending = asyncio.ensure_future(_pass(client, to_server))
        try:
            while data := await server.read(_CHUNK):
                self.received += len(data)
                if self._cut_at is not None and self.received >= self._cut_at:
                    self._cut_at = None
                    self._break(self._writers)
                    return
                to_client.write(data)
                await to_client.drain()
                await asyncio.sleep(self.pause_s)
        except OSError:
            pass
        finally:
            sending.cancel()
            self._break(writers)
            self._writers -= writers

    @staticmethod
    def _break(writers: set[asyncio.StreamWriter]) -> None:
        for writer in writers:
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


@asynccontextmanager
async def cable(to_port: int) -> AsyncIterator[Cable]:
    """A cable to a server on loopback; unplugged in the end."""
    made = Cable(to_port)
    server = await asyncio.start_server(made.relay, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made._break(made._writers)
        await server.wait_closed()
