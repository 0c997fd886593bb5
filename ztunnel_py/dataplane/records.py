# SPDX-License-Identifier: Apache-2.0
"""Takes the engine's records to whoever writes them down.

The first record after a quiet time is written at once. Then the descriptor is left alone for a
moment, so that one turn of the loop serves many records. While the log has no room, records stay in
the engine, which counts those that it cannot keep: traffic never waits for a log.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.dataplane.abc import DataPlane, RecordLog

RECORDS_PER_TURN = 256
GATHER_S = 0.02
_LOOK_S = 0.005
FLUSH_S = 1.0
"""How long an exit waits for a log that has no room, seconds."""


class Records:
    """Drains one engine."""

    def __init__(self, plane: DataPlane, log: RecordLog) -> None:
        self._plane = plane
        self._log = log
        self._next: asyncio.Handle | None = None

    def start(self) -> None:
        """Drains from now on."""
        self._watch()

    def stop(self) -> None:
        """Drains no more by itself; `flush` takes what is left once the engine has stopped."""
        asyncio.get_running_loop().remove_reader(self._plane.record_fd)
        if self._next is not None:
            self._next.cancel()

    async def flush(self) -> None:
        """Writes everything that waits, for at most `FLUSH_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                while True:
                    has_room = self._log.room() > 0
                    if not self._drain() and has_room:
                        return
                    await asyncio.sleep(0 if has_room else _LOOK_S)

    def _watch(self) -> None:
        asyncio.get_running_loop().add_reader(self._plane.record_fd, self._heard)

    def _heard(self) -> None:
        asyncio.get_running_loop().remove_reader(self._plane.record_fd)
        self._look()

    def _look(self) -> None:
        loop, has_room = asyncio.get_running_loop(), self._log.room() > 0
        n_written = self._drain() if has_room else 0
        if n_written == RECORDS_PER_TURN:
            self._next = loop.call_soon(self._look)
        elif n_written or not has_room:
            self._next = loop.call_later(GATHER_S, self._look)
        else:
            self._watch()

    def _drain(self) -> int:
        limit = min(RECORDS_PER_TURN, self._log.room())
        return self._plane.write_records(limit, self._log) if limit else 0
