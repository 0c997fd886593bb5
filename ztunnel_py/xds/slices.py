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

from ztunnel_py.yields import Yields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ztunnel_py.state.store import Store, Update

SLICE_S = 0.002
"""Of the 5 ms that nobody may wait: a step in which several tables grow takes more than that."""
LARGE = 1000
"""After how many steps what they brought is taken for long-lived."""


class Slices:
    """Applies updates to one store.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._yields = Yields()
        self._n_young = 0

    async def apply(self, steps: Iterable[Update | None]) -> None:
        """Applies what `steps` yields; None is a step that was work but changes nothing."""
        left = iter(steps)
        is_over = False

        def one() -> Iterator[Update]:
            nonlocal is_over
            ends_at = self._now() + SLICE_S
            for step in left:
                self._n_young += 1
                if step is not None:
                    yield step
                if self._now() >= ends_at:
                    return
                self._yields.offer()
            is_over = True

        while not is_over:
            self._store.apply(one())
            await asyncio.sleep(0)
            if self._n_young >= LARGE:
                self._settle()
                await asyncio.sleep(0)

    def _settle(self) -> None:
        """Spares later collections what has come.

        Python counts new objects less those that went, whatever their age. In a state that changes
        without growing it would count for long, and then collect very much at once.
        """
        gc.collect(1)
        gc.freeze()
        self._n_young = 0
