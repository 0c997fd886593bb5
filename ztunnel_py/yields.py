# SPDX-License-Identifier: Apache-2.0
"""Long computing that does not keep the processor from those who move bytes.

A thread that wakes up on a processor on which another one computes may wait until the scheduler's
clock ticks, which takes milliseconds. So who computes for long offers the processor many times a
millisecond. The kernel then also takes the offered thread's place in the queue, so beside others
that compute as long it would hardly ever run: offers must cost no more time than there is between
them.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 0.00015


class Yields:
    """The offers of one computation.

    Args:
        now: seconds of a monotonic clock.
        give: lets others have the processor.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        give: Callable[[], None] = os.sched_yield,
    ) -> None:
        self._now = now
        self._give = give
        self._next_s = 0.0

    def offer(self) -> None:
        """Lets others run, unless they had as much as their part already."""
        begun = self._now()
        if begun >= self._next_s:
            self._give()
            ended = self._now()
            self._next_s = ended + max(EVERY_S, ended - begun)
