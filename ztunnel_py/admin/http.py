# SPDX-License-Identifier: Apache-2.0
"""The small HTTP servers of an operator: one shape for admin, stats and readiness.

HTTP/1.1 without TLS. A connection that sends no whole request header within 2 s is closed, also
between requests; a header line is at most 8 KiB. An error in a handler answers 500 with its text.
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

_HEADER_TIMEOUT_S = 2.0
_HEADER_LIMIT = 8 * 1024
_DRAIN_S = 2.0
"""How long requests in flight may finish on `close`, seconds."""
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


class Answer(NamedTuple):
    """What a handler answers; an empty body has no content type."""

    status: int
    body: str = ""
    content_type: str = _TEXT
    is_compressible: bool = False


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
    """

    def __init__(
        self,
        component: str,
        addresses: Sequence[tuple[str, int]],
        handlers: Mapping[str, Handler],
    ) -> None:
        self._component = component
        self._wanted = tuple(addresses)
        self._handlers = handlers
        self._runner: web.ServerRunner | None = None
        self._servers: list[asyncio.Server] = []
        self._bound: tuple[str, int] | None = None

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
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=_DRAIN_S)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(
                await loop.create_server(lambda: _HalfClosable(server()), sock=listener)
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
        await runner.cleanup()
        self._say("listener drained")

    def _say(self, message: str) -> None:
        host, port = self.address
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _log.info(message, {"address": Display(text), "component": self._component})

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        handler = self._handlers.get(request.path)
        if handler is None:
            return _response(request, NOT_FOUND)
        accept = tuple(request.headers.getall("Accept", ()))
        seen = Request(request.method, request.path, accept, request.query)
        try:
            answer = handler(seen)
            if not isinstance(answer, Answer):
                answer = await answer
        except Exception as error:  # the outermost loop of a request: its client gets the text
            _log.error(f"{self._component}: {request.path} failed: {error!r}")
            answer = Answer(500, str(error))
        return _response(request, answer)


class _HalfClosable(asyncio.Protocol):
    """Passes everything on, and keeps a connection whose client has closed its side.

    It is closed after its answer, or by the header timeout.
    """

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
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


def _response(request: web.BaseRequest, answer: Answer) -> web.Response:
    if not answer.body:
        return web.Response(status=answer.status)
    response = web.Response(
        status=answer.status,
        body=answer.body.encode("utf-8", "backslashreplace"),
        headers={"Content-Type": answer.content_type},
    )
    if answer.is_compressible:
        response.headers["Vary"] = "Accept-Encoding"
        coding = _coding(",".join(request.headers.getall("Accept-Encoding", ())))
        if coding is not None:
            response.enable_compression(coding)
    return response


def _coding(accepted: str) -> web.ContentCoding | None:
    """The best coding of those a client accepts; gzip where it does not care."""
    weights = {}
    for element in accepted.lower().split(","):
        name, _, parameter = element.partition(";")
        weight = parameter.strip().removeprefix("q=").strip() or "1"
        weights[name.strip()] = float(weight) if weight.replace(".", "", 1).isdecimal() else 0.0
    codings = (web.ContentCoding.gzip, web.ContentCoding.deflate)
    best = max(codings, key=lambda coding: weights.get(coding.value, 0.0))
    return best if weights.get(best.value, 0.0) > 0 else None


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
