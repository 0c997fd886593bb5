# SPDX-License-Identifier: Apache-2.0
"""`/debug/pprof/*` of the admin server: profiles for pprof and its like, one at a time.

    profile             processor time, `?seconds=` (1-300) at `&frequency=` (1-1000 a second)
    heap                memory that Python has allocated since tracing is active
    heap/profiling      `?activate=true` or `false`; tracing makes Python slower while it is active

Source: spec identity-ops, section D.2; ztunnel src/admin.rs.
"""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING

from ztunnel_py.admin import sampler
from ztunnel_py.admin.http import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ztunnel_py.admin.http import Handler, Request

_BINARY = "application/octet-stream"
_BUSY = Answer(409, "another profile is being taken; only one can be at a time\n")
_INACTIVE = Answer(
    500,
    "heap profiling not active; activate it with /debug/pprof/heap/profiling?activate=true, and "
    "wait until what you look for has been allocated\n",
)


class Profiles:
    """Takes them."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._stopped = threading.Event()

    def pages(self) -> Mapping[str, Handler]:
        """The handlers by path."""
        return {
            "/debug/pprof/profile": self._processor,
            "/debug/pprof/heap": self._heap,
            "/debug/pprof/heap/profiling": _profiling,
        }

    def stop(self) -> None:
        """Ends one that is being taken, for good."""
        self._stopped.set()

    async def _processor(self, request: Request) -> Answer:
        seconds, hertz = _number(request, "seconds", 10), _number(request, "frequency", 100)
        if seconds is None or not 1 <= seconds <= 300:
            return Answer(400, "invalid seconds value; expected 1-300\n")
        if hertz is None or not 1 <= hertz <= 1000:
            return Answer(400, "invalid frequency value; expected 1-1000\n")
        return await self._one(partial(sampler.processor, seconds, hertz, self._stopped))

    async def _heap(self, _: Request) -> Answer:
        return await self._one(sampler.memory) if tracemalloc.is_tracing() else _INACTIVE

    async def _one(self, profile: Callable[[], bytes]) -> Answer:
        if self._turn.locked():
            return _BUSY
        async with self._turn:
            return Answer(200, await asyncio.to_thread(profile), _BINARY)


def _profiling(request: Request) -> Answer:
    match request.query.get("activate"):
        case None:
            pass
        case "true":
            tracemalloc.start(sampler.TRACED_FRAMES)
        case "false":
            tracemalloc.stop()
        case _:
            return Answer(400, "invalid activate value; expected true or false\n")
    return Answer(200, f"heap profiling active: {str(tracemalloc.is_tracing()).lower()}\n")


def _number(request: Request, name: str, default: int) -> int | None:
    """A parameter's value; None if it is no number."""
    text = request.query.get(name)
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else None
