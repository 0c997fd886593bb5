# SPDX-License-Identifier: Apache-2.0
"""gRPC servers for tests: one of another maker over TLS, and one scripted frame by frame."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
from cryptography import x509

from tests.support.authority import SERVER_AUTH, Leaf
from tests.support.frames import PREFACE, FrameFactory
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.rpc.address import TcpAddress, UnixAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from tests.support.authority import Authority
    from ztunnel_py.identity.certificates import WorkloadCertificate

ISTIOD = Identity("cluster.local", "istio-system", "istiod")
_HEADERS, _PING = 1, 6


def server_certificate(authority: Authority, *names: str) -> WorkloadCertificate:
    """A certificate of a server with these DNS names."""
    leaf = Leaf([x509.DNSName(name) for name in names], usages=(SERVER_AUTH,))
    return authority.issue(ISTIOD, leaf)


class RpcServer:
    """A `grpc.aio` server, over TLS on loopback or in plaintext on a socket in the file system."""

    def __init__(self, *, most_bytes: int = 4 << 20) -> None:
        options = [("grpc.max_send_message_length", most_bytes)]
        self.grpc = grpc.aio.server(options=options)
        self.port = 0

    @property
    def address(self) -> TcpAddress:
        """Where it listens, by name."""
        return TcpAddress.parse(f"localhost:{self.port}")

    async def start(self, certificate: WorkloadCertificate, port: int = 0) -> Self:
        """Listens with this certificate."""
        chain = (certificate.key_pem, certificate.chain_pem)
        credentials = grpc.ssl_server_credentials([chain])
        self.port = self.grpc.add_secure_port(f"127.0.0.1:{port}", credentials)
        await self.grpc.start()
        return self

    async def start_unix(self, path: Path) -> Self:
        """Listens in plaintext."""
        self.grpc.add_insecure_port(f"unix:{path}")
        await self.grpc.start()
        return self

    def add(self, service: str, **methods: grpc.RpcMethodHandler[Any, Any]) -> Self:
        """Serves methods of a service."""
        handler = grpc.method_handlers_generic_handler(service, methods)
        self.grpc.add_generic_rpc_handlers((handler,))
        return self

    async def stop(self) -> None:
        """Ends calls at once."""
        await self.grpc.stop(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


class Frames(FrameFactory):
    """One client's connection to a `FrameServer`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self.reader = reader
        self.writer = writer

    async def request(self) -> None:
        """Waits until something follows the preface, which holds our SETTINGS."""
        await self.reader.readexactly(len(PREFACE))
        self.writer.write(self.settings())
        while (await self._frame())[0] != _HEADERS:
            pass  # SETTINGS and WINDOW_UPDATE come first

    async def _frame(self) -> tuple[int, bytes]:
        """Type and payload of the next frame."""
        head = await self.reader.readexactly(9)
        return head[3], await self.reader.readexactly(int.from_bytes(head[:3]))

    async def pings(self) -> AsyncIterator[bytes]:
        """What the client's PINGs carry."""
        while True:
            kind, payload = await self._frame()
            if kind == _PING:
                yield payload

    def answer(self) -> bytes:
        """Response headers of a call."""
        return self.headers(1, [(":status", "200"), ("content-type", "application/grpc")])

    def trailers(self, status: int = 0, message: str = "") -> bytes:
        """The end of a call."""
        fields = [("grpc-status", str(status)), ("grpc-message", message)]
        return self.headers(1, fields, end=True)


class FrameServer:
    """Says what a test scripts, in plaintext, and then waits until the client hangs up."""

    def __init__(self, script: Callable[[Frames], Awaitable[None]]) -> None:
        self._script = script
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name) / "socket"
        self.connections = 0
        self.failure: BaseException | None = None

    @property
    def address(self) -> UnixAddress:
        """Where it listens."""
        return UnixAddress(str(self.path))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        self._directory.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(Frames(reader, writer))
            while await reader.read(1 << 16):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has seen enough
        finally:
            writer.close()


def message(payload: bytes) -> bytes:
    """A gRPC message as it is on the wire."""
    return b"\0" + len(payload).to_bytes(4) + payload
