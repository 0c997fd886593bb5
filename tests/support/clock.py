# SPDX-License-Identifier: Apache-2.0
"""A clock that stands still until a test advances it."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeTimer:
    """A pending call of a `FakeClock`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Forgets the call."""
        self.call = None


class FakeClock:
    """Satisfies `ztunnel_py.clock.Clock`; starts at 1000 s."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self.on_advance: list[Callable[[float], None]] = []
        """Told by how many seconds time has moved, after this clock's own timers."""

    def now(self) -> float:
        """Seconds."""
        return self._now

    def call_later(self, delay_s: float, call: Callable[[], object]) -> FakeTimer:
        """Runs `call` when the test has advanced by `delay_s`."""
        timer = FakeTimer(call)
        heapq.heappush(self._timers, (self._now + delay_s, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Moves on, running what becomes due in order."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            self._now, _, timer = heapq.heappop(self._timers)
            if timer.call is not None:
                timer.call()
        self._now = end
        for call in self.on_advance:
            call(seconds)

    @property
    def pending(self) -> int:
        """Timers that are still to run."""
        return sum(timer.call is not None for _, _, timer in self._timers)
