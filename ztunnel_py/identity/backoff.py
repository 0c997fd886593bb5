# SPDX-License-Identifier: Apache-2.0
"""How long to wait after failures in a row: doubling, with jitter, and steady after a while.

Source: spec identity-ops, section A.4; ztunnel src/identity/manager.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_S = 1.0
_LONGEST_S = 150.0
_JITTER = 0.2
_STEADY_AFTER_S = 900.0


class Backoff:
    """Delays for one thing that keeps failing; after a success the next failure makes another."""

    def __init__(self, now: float, random: Callable[[], float]) -> None:
        """Failures since `now`, in seconds of any clock; `random` draws from 0 to 1."""
        self._since = now
        self._base = _FIRST_S
        self._random = random

    def delay(self, now: float) -> float:
        """Seconds until the next try, after another failure."""
        delay = self._base * (1 - _JITTER + 2 * _JITTER * self._random())
        self._base = min(2 * self._base, _LONGEST_S)
        is_old = now - self._since + delay > _STEADY_AFTER_S
        return _LONGEST_S if is_old else delay
