# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 10.0
_POLL_S = 0.002
_EAGER_TURNS = 50


async def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Returns as soon as `condition` holds; fails naming `what` at the deadline."""
    for _ in range(_EAGER_TURNS):
        if condition():
            return
        await asyncio.sleep(0)
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s:g} s for: {what}"
        await asyncio.sleep(_POLL_S)


async def settle(turns: int = 20) -> None:
    """Lets the loop run a few turns, for asserting that something does not happen."""
    for _ in range(turns):
        await asyncio.sleep(_POLL_S)
