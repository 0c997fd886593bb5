# SPDX-License-Identifier: Apache-2.0
"""Time as an argument: tests advance it, production reads the loop's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


T = TypeVar("T")


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Forgets the call; harmless when it has run."""


class Clock(Protocol):
    """Monotonic time and timers."""

    def now(self) -> float:
        """Seconds since an arbitrary start; never goes back."""

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        """Runs `call` on the loop after `delay_s`."""


class LoopClock:
    """The running event loop's time."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        """Runs `call` on the running loop after `delay_s`."""
        return asyncio.get_running_loop().call_later(delay_s, call)


async def within(clock: Clock, limit_s: float, awaitable: Awaitable[T]) -> T:
    """The awaitable's result, if it comes in time; it is cancelled otherwise.

    Raises:
        TimeoutError: `limit_s` passed; the text is ztunnel's, `deadline has elapsed`.
    """
    future = asyncio.ensure_future(awaitable)
    has_elapsed = False

    def elapse() -> None:
        nonlocal has_elapsed
        has_elapsed = future.cancel()

    timer = clock.call_later(limit_s, elapse)
    try:
        return await future
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if has_elapsed and not (task and task.cancelling()):
            raise TimeoutError("deadline has elapsed") from None
        raise
    finally:
        timer.cancel()


async def pause(clock: Clock, seconds: float) -> None:
    """Returns after `seconds`."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with contextlib.suppress(TimeoutError):
        await within(clock, seconds, never)
