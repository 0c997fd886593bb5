# SPDX-License-Identifier: Apache-2.0
"""Plain TCP at both ends of the mesh: the user who connects and the application that accepts."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING

from tests.support import sockets
from tests.support.wait import DEADLINE_S
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPBACK = "127.0.0.1"
RST, FIN = "RST", "FIN"
_CHUNK = 1 << 16


class Tcp:
    """One TCP connection, moved by a test. What it does not read stays in the kernel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.local = SockAddr.of(writer.get_extra_info("sockname"))
        self.remote = SockAddr.of(writer.get_extra_info("peername"))

    @classmethod
    async def dial(cls, to: SockAddr, source: str | None = None) -> Tcp:
        """Connects, from an address of the test's choice."""
        local = None if source is None else (source, 0)
        return cls(*await asyncio.open_connection(str(to.ip), to.port, local_addr=local))

    async def read(self, length: int) -> bytes:
        """Exactly `length` bytes."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.readexactly(length)

    async def read_some(self) -> bytes:
        """What is there, at least a byte unless it ended."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read(_CHUNK)

    async def read_all(self) -> bytes:
        """Everything up to the FIN."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read()

    async def read_some_or_reset(self) -> bytes:
        """What is there; nothing if it ended, either way."""
        try:
            return await self.read_some()
        except ConnectionResetError:
            return b""

    async def ending(self) -> str:
        """How the other side ended it, `FIN` or `RST`; what it sent before is thrown away."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while await self._reader.read(_CHUNK):
                    pass
        except ConnectionResetError:
            return RST
        return FIN

    def send(self, data: bytes) -> None:
        """Writes; what the kernel does not take waits in memory."""
        self._writer.write(data)

    @property
    def unsent(self) -> int:
        """Bytes that the kernel did not take."""
        return self._writer.transport.get_write_buffer_size()

    @property
    def unread_by_engine(self) -> int:
        """Bytes sent that wait in the other end's receive queue, if it is in this process."""
        with sockets.connected(self.remote, self.local) as other:
            found = array.array("i", [0])
            fcntl.ioctl(other, termios.FIONREAD, found)
            return found[0]

    def end(self) -> None:
        """FIN; reading goes on."""
        self._writer.write_eof()

    @property
    def is_closed(self) -> bool:
        """This side has closed it, or the other has broken it."""
        return self._writer.transport.is_closing()

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """Closes both ways."""
        self._writer.transport.abort()

    @property
    def sock(self) -> socket.socket:
        """The socket below."""
        found: socket.socket = self._writer.get_extra_info("socket")
        return found


class App:
    """A listening application that hands its connections to the test."""

    def __init__(self, behave: Callable[[Tcp], Awaitable[None]] | None = None) -> None:
        self._behave = behave
        self._arrived: asyncio.Queue[Tcp] = asyncio.Queue()
        self.accepted: list[Tcp] = []
        self.address: SockAddr
        self._server: asyncio.Server

    async def start(self, host: str = LOOPBACK) -> App:
        """Listens on a port of the kernel's choice."""
        self._server = await asyncio.start_server(self._accept, host, 0, backlog=1024)
        self.address = SockAddr.of(self._server.sockets[0].getsockname())
        return self

    async def accept(self) -> Tcp:
        """The next connection."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._arrived.get()

    def close(self) -> None:
        """Stops listening and closes what it accepted."""
        self._server.close()
        for tcp in self.accepted:
            tcp.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tcp = Tcp(reader, writer)
        self.accepted.append(tcp)
        if not self._server.is_serving():
            tcp.close()  # was on its way when the test ended
        self._arrived.put_nowait(tcp)
        if self._behave is not None:
            await self._behave(tcp)


async def echo(tcp: Tcp) -> None:
    """Sends back what comes, and the end."""
    with contextlib.suppress(ConnectionError):
        while data := await tcp._reader.read(_CHUNK):
            tcp._writer.write(data)
            await tcp._writer.drain()
        tcp.end()
