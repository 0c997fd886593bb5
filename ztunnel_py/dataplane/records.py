# SPDX-License-Identifier: Apache-2.0
"""Takes the engine's records to whoever writes them down.

The first record after a quiet time is written at once. Then the descriptor is left alone for a
moment, so that one turn of the loop serves many records.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.dataplane.abc import DataPlane, RecordLog

RECORDS_PER_TURN = 256
GATHER_S = 0.02


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

    def flush(self) -> None:
        """Writes everything that waits."""
        while self._drain():
            pass

    def _watch(self) -> None:
        asyncio.get_running_loop().add_reader(self._plane.record_fd, self._heard)

    def _heard(self) -> None:
        asyncio.get_running_loop().remove_reader(self._plane.record_fd)
        self._look()

    def _look(self) -> None:
        n_written, loop = self._drain(), asyncio.get_running_loop()
        if n_written == RECORDS_PER_TURN:
            self._next = loop.call_soon(self._look)
        elif n_written:
            self._next = loop.call_later(GATHER_S, self._look)
        else:
            self._watch()

    def _drain(self) -> int:
        return self._plane.write_records(RECORDS_PER_TURN, self._log)
