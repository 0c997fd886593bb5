# SPDX-License-Identifier: Apache-2.0
"""Takes the engine's records to whoever writes them down."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.dataplane.abc import DataPlane, Record

RECORDS_PER_TURN = 256


class Records:
    """Drains one engine."""

    def __init__(self, plane: DataPlane, write: Callable[[Record], None]) -> None:
        self._plane = plane
        self._write = write

    def start(self) -> None:
        """Drains from now on."""
        asyncio.get_running_loop().add_reader(self._plane.record_fd, self._drain)

    def stop(self) -> None:
        """Drains no more by itself; `flush` takes what is left once the engine has stopped."""
        asyncio.get_running_loop().remove_reader(self._plane.record_fd)

    def flush(self) -> None:
        """Writes everything that waits."""
        while self._drain():
            pass

    def _drain(self) -> bool:
        records = self._plane.recv_records(RECORDS_PER_TURN)
        for record in records:
            self._write(record)
        return bool(records)
