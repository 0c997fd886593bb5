# SPDX-License-Identifier: Apache-2.0
"""The stats server on 15020: metrics text at `/metrics` and `/stats/prometheus`.

The body is OpenMetrics whatever is asked for; only the content type follows `Accept`. Text is made
in slices, between which the event loop serves everybody else, and compressed in a thread. Scrapes
that come while a text is being made all get that one.
Source: spec identity-ops, section E.1.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ztunnel_py.admin import coding
from ztunnel_py.admin.http import Answer, HttpServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from ztunnel_py.admin.http import Request

    Lines = Callable[[], Awaitable[Iterable[str | None]]]

SLICE_S = 0.003
"""How long the loop works on a text before it does something else."""
_OPENMETRICS = "application/openmetrics-text"


def stats_server(lines: Lines, addresses: Sequence[tuple[str, int]]) -> HttpServer:
    """A server that answers each scrape with the lines of `lines`; None is a place to rest."""
    scrapes = Scrapes(lines)

    async def answer(request: Request) -> Answer:
        chosen = coding.chosen(request.accept_encoding)
        headers = {"Vary": "Accept-Encoding"}
        if chosen:
            headers["Content-Encoding"] = chosen
        return Answer(200, await scrapes.body(chosen), content_type(request.accept), headers)

    return HttpServer("stats", addresses, {"/metrics": answer, "/stats/prometheus": answer})


def content_type(accept: Iterable[str]) -> str:
    """The content type for the values of all `Accept` headers."""
    types = (element.split(";")[0] for value in accept for element in value.lower().split(","))
    if _OPENMETRICS in types:
        return f"{_OPENMETRICS};charset=utf-8;version=1.0.0"
    return "text/plain; charset=utf-8"


class Scrapes:
    """One text at a time, shared by all who wait for it."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._turn = asyncio.Lock()
        self._n_waiting = 0
        self._latest = _Text([])

    async def body(self, chosen: str) -> bytes:
        """The text in a coding, as of now or of a scrape that has not yet been answered."""
        seen = self._latest
        self._n_waiting += 1
        try:
            async with self._turn:
                if self._latest is seen:
                    self._latest = _Text(await _sliced(await self._lines()))
                return await self._latest.encoded(chosen)
        finally:
            self._n_waiting -= 1
            if not self._n_waiting:
                self._latest = _Text([])


class _Text:
    """Metrics as of one moment."""

    def __init__(self, slices: list[bytes]) -> None:
        self._slices = slices
        self._encoded: dict[str, bytes] = {}

    async def encoded(self, chosen: str) -> bytes:
        """All of it, in a coding."""
        if chosen not in self._encoded:
            self._encoded[chosen] = await asyncio.to_thread(coding.encode, chosen, self._slices)
        return self._encoded[chosen]


async def _sliced(lines: Iterable[str | None]) -> list[bytes]:
    """The lines, a slice for each time that the loop was busy with them."""
    slices: list[bytes] = []
    some: list[str] = []
    ends_at = time.monotonic() + SLICE_S
    for line in lines:
        if line is not None:
            some.append(line)
        if time.monotonic() >= ends_at:
            slices.append("".join(some).encode("utf-8", "backslashreplace"))
            some.clear()
            await asyncio.sleep(0)
            ends_at = time.monotonic() + SLICE_S
    slices.append("".join(some).encode("utf-8", "backslashreplace"))
    return slices
