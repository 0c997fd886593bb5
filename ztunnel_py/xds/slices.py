# SPDX-License-Identifier: Apache-2.0
"""Changes the state in slices of a few milliseconds, between which everything else goes on.

A slice is a batch of whole updates: after it the store is consistent, and its epochs have moved
once.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ztunnel_py.state.store import Store, Update

SLICE_S = 0.003
"""Of the 5 ms that nobody may wait: the step that ends a slice takes its time, too."""
LARGE = 1000
"""From how many steps on what was applied is taken for long-lived."""


async def apply(
    store: Store, steps: Iterable[Update | None], now: Callable[[], float] = time.monotonic
) -> None:
    """Applies what `steps` yields; None is a step that was work but changes nothing.

    `now` gives the seconds of a monotonic clock.
    """
    left = iter(steps)
    count, is_over = 0, False

    def one() -> Iterator[Update]:
        nonlocal count, is_over
        ends_at = now() + SLICE_S
        for step in left:
            count += 1
            if step is not None:
                yield step
            if now() >= ends_at:
                return
        is_over = True

    while not is_over:
        store.apply(one())
        if count >= LARGE:
            gc.freeze()  # else collections walk everything that is known, ever longer
        await asyncio.sleep(0)
