# SPDX-License-Identifier: Apache-2.0
"""A client of the server under test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ztunnel_py.admin.http import HttpServer


class Reply(NamedTuple):
    """A response, its body as it came over the wire."""

    status: int
    content_type: str
    body: bytes
    coding: str


class Client:
    """Asks one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request."""
        async with self._session.request(method, self._url + path, headers=headers) as response:
            return Reply(
                response.status,
                response.headers.get("Content-Type", ""),
                await response.read(),
                response.headers.get("Content-Encoding", ""),
            )


@asynccontextmanager
async def client_of(server: HttpServer) -> AsyncIterator[Client]:
    """Opens the server, and closes it at the end."""
    await server.open()
    host, port = server.address
    async with aiohttp.ClientSession(
        auto_decompress=False, skip_auto_headers=("Accept", "Accept-Encoding")
    ) as session:
        yield Client(session, f"http://{host}:{port}")
    await server.close()
