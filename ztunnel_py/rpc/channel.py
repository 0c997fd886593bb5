# SPDX-License-Identifier: Apache-2.0
"""A gRPC channel: one connection to a server, dialled when a call needs it.

Source: ztunnel src/tls/control.rs (`grpc_connector`); spec state, section 1.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, NamedTuple

from grpclib.client import Handler
from grpclib.config import Configuration
from h2.config import H2Configuration

from ztunnel_py.rpc import call as calls
from ztunnel_py.rpc.address import UnixAddress
from ztunnel_py.rpc.errors import OpenError, RpcError, Status
from ztunnel_py.rpc.protocol import Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Sequence

    from ztunnel_py.rpc.address import Address, TcpAddress
    from ztunnel_py.rpc.call import Call

    Headers = Sequence[tuple[str, str]]

_CONNECT_S = 5.0
_HANDSHAKE_S = 10.0
_WINDOW = 1 << 16
"""Bytes that may come before they are read; more would come in one long turn of the loop, which
keeps others from its processor as well."""
_TCP_IDLE_S, _TCP_INTERVAL_S, _TCP_PROBES = 300, 75, 9


class Pings(NamedTuple):
    """PINGs of HTTP/2 while a call is open, in seconds: how often, and how soon answered."""

    every_s: float = 30.0
    answer_s: float = 10.0


PINGS = Pings()


class Channel:
    """Calls to one server; closing it ends them."""

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None,
        headers: Callable[[], Headers],
        pings: Pings = PINGS,
    ) -> None:
        """A channel that is not connected yet.

        Args:
            address: where the server is.
            context: TLS; None for a server on this machine.
            headers: asked before each call for headers to send along; may raise OpenError.
            pings: to notice that a server is gone.
        """
        self._address = address
        self._context = context
        self._headers = headers
        self._configuration = Configuration(
            http2_connection_window_size=_WINDOW,
            http2_stream_window_size=_WINDOW,
            _keepalive_time=pings.every_s,
            _keepalive_timeout=pings.answer_s,
            _http2_max_pings_without_data=0,  # no limit: a stream may be silent for hours
            _http2_min_sent_ping_interval_without_data=pings.every_s / 2,
        ).__for_client__()
        self._dialling = asyncio.Lock()
        self._connection: Connection | None = None
        self._failure: OpenError | None = None
        self._n_calls = 0
        self._is_retired = False

    def __str__(self) -> str:
        return str(self._address)

    @contextlib.asynccontextmanager
    async def call(self, path: str) -> AsyncIterator[Call]:
        """A call of the method at `path` (`/package.Service/Method`).

        Raises:
            OpenError: there are no headers for it, or no connection.
        """
        self._n_calls += 1
        try:
            call = await self._opened(path)
            try:
                yield call
            finally:
                call.close()
        finally:
            self._n_calls -= 1
            if self._is_retired:
                self.retire()

    async def _opened(self, path: str) -> Call:
        own = self._headers()  # first: without a token nothing is sent
        connection = await self._connected()
        standard = [
            (":method", "POST"),
            (":scheme", "http" if self._context is None else "https"),
            (":path", path),
            (":authority", self._address.authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "ztunnel-py"),
        ]
        return await calls.opened(connection, [*standard, *own])

    async def unary(self, path: str, request: bytes, limit_s: float) -> bytes:
        """The one answer to a request.

        Raises:
            RpcError: there is none within `limit_s`; OpenError as for `call`.
        """
        try:
            async with asyncio.timeout(limit_s), self.call(path) as call:
                await call.send(request, end=True)
                answer = await call.receive()
                if answer is None or await call.receive() is not None:
                    raise RpcError(Status.INTERNAL, "expected exactly one message in the answer")
                return answer
        except TimeoutError as error:
            message = f"no answer from {self._address} within {limit_s:g} s"
            raise RpcError(Status.DEADLINE_EXCEEDED, message) from error

    def close(self) -> None:
        """Ends the connection and all calls."""
        if self._connection is not None:
            self._connection.processor.close("the channel was closed")
            self._connection = None

    def retire(self) -> None:
        """Closes as soon as no call is open; there must be no new ones."""
        self._is_retired = True
        if self._n_calls == 0:
            self.close()

    async def _connected(self) -> Connection:
        """The connection, dialled once however many wait for it."""
        before = self._failure
        async with self._dialling:
            if self._connection is None or self._connection.connection.is_closing():
                if self._failure is not None and self._failure is not before:
                    raise OpenError(self._failure.status, self._failure.message)
                try:
                    self._connection = await self._dial()
                except OSError as error:
                    message = f"cannot connect to {self._address}: {error}"
                    self._failure = OpenError(Status.UNAVAILABLE, message)
                    raise self._failure from error
            return self._connection

    async def _dial(self) -> Connection:
        loop = asyncio.get_running_loop()
        if isinstance(self._address, UnixAddress):
            return (await loop.create_unix_connection(self._protocol, self._address.path))[1]
        tcp = await _dialled(self._address)
        try:
            _, connection = await loop.create_connection(
                self._protocol,
                sock=tcp,
                ssl=self._context,
                server_hostname=self._address.host,
                ssl_handshake_timeout=_HANDSHAKE_S,
            )
        except BaseException:
            tcp.close()
            raise
        return connection

    def _protocol(self) -> Connection:
        h2 = H2Configuration(
            client_side=True, header_encoding=None, normalize_outbound_headers=False
        )
        return Connection(Handler(), self._configuration, h2)


async def _dialled(address: TcpAddress) -> socket.socket:
    """A connected socket; each address of the name is tried in turn.

    Raises:
        OSError: none answers in time.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_S):
            found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            error: OSError = ConnectionError("the name has no addresses")
            for family, kind, protocol, _, to in found:
                tcp = _socket(family, kind, protocol)
                try:
                    await loop.sock_connect(tcp, to)
                except BaseException as failed:
                    tcp.close()
                    if not isinstance(failed, OSError):
                        raise
                    error = failed
                else:
                    return tcp
            raise error
    except TimeoutError as error:
        raise TimeoutError(f"no connection within {_CONNECT_S:g} s") from error


def _socket(family: int, kind: int, protocol: int) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _TCP_IDLE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _TCP_INTERVAL_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _TCP_PROBES)
    return made
