# SPDX-License-Identifier: Apache-2.0
"""Background tasks fail loudly and end together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.wait import settle
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    import pytest


async def test_a_task_that_fails_is_reported_with_its_stack(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def fail() -> None:
        raise LookupError("lost")

    tasks = Tasks()
    tasks.spawn(fail())
    await settle(2)

    assert "LookupError: lost" in capfd.readouterr().err


async def test_the_end_cancels_what_runs_and_waits_for_it() -> None:
    ended = []

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    tasks = Tasks()
    tasks.spawn(run())
    await settle(2)
    await tasks.stop()

    assert ended == [True]
