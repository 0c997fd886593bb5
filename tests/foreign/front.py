# SPDX-License-Identifier: Apache-2.0
"""A front that adds TLS with a client's certificate for programs that have none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.foreign.programs import LOOPBACK
from tests.support.tls import tls_context

if TYPE_CHECKING:
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.state.address import SockAddr

_CHUNK = 1 << 16


class TlsFront:
    """Takes plaintext on loopback and passes it on in TLS: for one program."""

    def __init__(self, to: SockAddr, certificate: WorkloadCertificate) -> None:
        self._to = to
        self._context = tls_context(certificate, is_server=False)
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> TlsFront:
        """Listens on a port of the kernel's choice."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stops listening; the connections have ended with the program."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(str(self._to.ip), self._to.port, ssl=self._context)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.ensure_future(_pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()
