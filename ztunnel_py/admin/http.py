# SPDX-License-Identifier: Apache-2.0
"""The small HTTP servers of an operator: one shape for admin, stats and readiness.

HTTP/1.1 without TLS. A connection that sends no whole request header within 2 s is closed, also
between requests; a header line is at most 8 KiB, and bodies are not read. An error in a handler
answers 500 with its text.
Source: spec identity-ops, section D.1; ztunnel src/hyper_util.rs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from ztunnel_py.errors import StartError
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

_HEADER_TIMEOUT_S = 2.0
_HEADER_LIMIT = 8 * 1024
_DRAIN_S = 2.0
"""How long requests in flight may finish on `close`, seconds."""
_CHUNK_SIZE = 256 * 1024
_PAUSE_S = 0.001
"""After each chunk of a long answer, whoever it is for: so a hundred readers of a hundred megabytes
leave the processor's time and caches, and the kernel's queues of packets, to the traffic."""
_SEND_S = 60.0
"""How long a client may take to read a long answer, seconds; then it is disconnected."""
_MOST_CONNECTIONS = 512
"""Of one server; they take descriptors that the traffic needs."""
_TEXT = "text/plain"
_log = logger("ztunnel::hyper_util")
# aiohttp reports malformed requests with a stack; they are their sender's business.
_silent = logging.Logger("aiohttp")
_silent.addHandler(logging.NullHandler())


class Request(NamedTuple):
    """What a handler sees of a request."""

    method: str
    path: str
    accept: tuple[str, ...]
    """Values of all `Accept` headers."""
    query: Mapping[str, str] = MappingProxyType({})
    """Parameters behind the path; of a repeated one the first."""
    accept_encoding: str = ""
    """Values of all `Accept-Encoding` headers."""


class Answer(NamedTuple):
    """What a handler answers; an empty body has no content type."""

    status: int
    body: str | bytes | Blocks = ""
    """What to send, or who gives it block by block for as long as it is sent."""
    content_type: str = _TEXT
    headers: Mapping[str, str] = MappingProxyType({})


if TYPE_CHECKING:
    Blocks = Callable[[], AbstractAsyncContextManager[Sequence[bytes]]]

NOT_FOUND = Answer(404)
NOT_ALLOWED = Answer(405)

if TYPE_CHECKING:
    Handler = Callable[[Request], Answer | Awaitable[Answer]]


class HttpServer:
    """One component's server on one or more addresses.

    Args:
        component: its name in log lines.
        addresses: (IP address, port) pairs; port 0 lets the kernel choose.
        handlers: by path; other paths answer 404.
        stop: ends requests that take long, when the server closes.
    """

    def __init__(
        self,
        component: str,
        addresses: Sequence[tuple[str, int]],
        handlers: Mapping[str, Handler],
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._component = component
        self._wanted = tuple(addresses)
        self._handlers = handlers
        self._stop = stop
        self._runner: web.ServerRunner | None = None
        self._servers: list[asyncio.Server] = []
        self._connections: set[_HalfClosable] = set()
        self._bound: tuple[str, int] | None = None
        self._sending = asyncio.Lock()

    @property
    def address(self) -> tuple[str, int]:
        """The first bound address, with the port the kernel chose; only while open."""
        if self._bound is None:
            raise RuntimeError(f"{self._component} server is not open")
        return self._bound

    async def open(self) -> None:
        """Binds all addresses and serves.

        Raises:
            StartError: an address cannot be bound; none is left open.
        """
        listeners: list[socket.socket] = []
        try:
            for host, port in self._wanted:
                listeners.append(_listen(host, port))
        except StartError:
            for listener in listeners:
                listener.close()
            raise
        server = web.Server(
            self._serve,
            keepalive_timeout=_HEADER_TIMEOUT_S,
            access_log=None,
            logger=_silent,
            max_line_size=_HEADER_LIMIT,
            max_field_size=_HEADER_LIMIT,
            lingering_time=_HEADER_TIMEOUT_S,  # for a body that nobody wants
            auto_decompress=False,
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=_DRAIN_S)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(
                await loop.create_server(
                    lambda: _HalfClosable(server(), self._connections), sock=listener
                )
            )
        self._bound = listeners[0].getsockname()[:2]
        self._say("listener established")

    async def close(self) -> None:
        """Stops accepting, lets requests in flight finish, closes."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._stop()
        await runner.cleanup()
        self._say("listener drained")

    def _say(self, message: str) -> None:
        host, port = self.address
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _log.info(message, {"address": Display(text), "component": self._component})

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = self._handlers.get(request.path)
        if handler is None:
            return await self._respond(request, NOT_FOUND)
        accept = tuple(request.headers.getall("Accept", ()))
        encodings = ",".join(request.headers.getall("Accept-Encoding", ()))
        seen = Request(request.method, request.path, accept, request.query, encodings)
        try:
            answer = handler(seen)
            if not isinstance(answer, Answer):
                answer = await answer
            return await self._respond(request, answer)
        except Exception as error:  # the outermost loop of a request: its client gets the text
            _log.error(f"{self._component}: {request.path} failed: {error!r}")
            return await self._respond(request, Answer(500, str(error)))

    async def _respond(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        body = answer.body
        if callable(body):
            async with body() as blocks:
                return await self._send(request, answer, blocks)
        if isinstance(body, str):
            body = body.encode("utf-8", "backslashreplace")
        if not body:
            return web.Response(status=answer.status, headers=answer.headers)
        if len(body) <= _CHUNK_SIZE:
            headers = {"Content-Type": answer.content_type, **answer.headers}
            return web.Response(status=answer.status, body=body, headers=headers)
        whole, starts = memoryview(body), range(0, len(body), _CHUNK_SIZE)
        chunks = [whole[start : start + _CHUNK_SIZE] for start in starts]
        return await self._send(request, answer, chunks)

    async def _send(
        self, request: web.BaseRequest, answer: Answer, blocks: Sequence[bytes | memoryview]
    ) -> web.StreamResponse:
        """Sends blocks, each when the client has taken those before."""
        headers = {"Content-Type": answer.content_type, **answer.headers}
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = sum(map(len, blocks))
        try:
            async with asyncio.timeout(_SEND_S):
                await response.prepare(request)
                for block in blocks if request.method != "HEAD" else ():
                    await response.write(block)
                    async with self._sending:
                        await asyncio.sleep(_PAUSE_S)
                await response.write_eof()
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        return response


class _HalfClosable(asyncio.Protocol):
    """Passes everything on, and keeps a connection whose client has closed its side.

    It is closed after its answer, or by the header timeout. One too many is closed at once.
    """

    def __init__(self, inner: asyncio.Protocol, connections: set[_HalfClosable]) -> None:
        self._inner = inner
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            transport.close()
            return
        self._connections.add(self)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._connections:
            self._connections.remove(self)
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def eof_received(self) -> bool:
        self._inner.eof_received()
        return True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    listener = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            # asyncio's own bind would leave IPv4 out.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise StartError(f"failed to bind to address {text}: {error.strerror}") from error
    return listener
