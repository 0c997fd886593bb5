# SPDX-License-Identifier: Apache-2.0
"""Background tasks that are kept, reported if they fail, and ended together."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logger("ztunnel::app")


class Tasks:
    """The only place that starts tasks outside the engines: none is lost, none fails silently."""

    def __init__(self, fail: Callable[[str], None] | None = None) -> None:
        """`fail` ends the program, with a reason."""
        self._fail = fail
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Runs `work` in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def essential(self, what: str, work: Coroutine[object, object, None]) -> None:
        """Runs what the program is nothing without: if it fails, so does the program.

        Better no proxy, which is noticed and started again, than half of one.
        """
        self.spawn(self._essential(what, work))

    async def _essential(self, what: str, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception as error:
            if self._fail is not None:
                self._fail(f"{what} failed: {error!r}")
            raise

    async def stop(self) -> None:
        """Cancels what runs and waits for it."""
        self.cancel()
        await self.done()

    def cancel(self) -> None:
        """Ends what runs, as soon as the loop turns."""
        for task in self._running:
            task.cancel()

    async def done(self) -> None:
        """Returns when nothing runs."""
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            stack = "".join(traceback.format_exception(error))
            log.error("a background task failed", {"stack": stack})
