# SPDX-License-Identifier: Apache-2.0
"""Limits on waiting, and the clock that tests use."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.clock import FakeClock
from tests.support.wait import settle
from ztunnel_py.clock import LoopClock, within


async def test_result_in_time_is_returned_and_leaves_no_timer() -> None:
    clock = FakeClock()
    answer: asyncio.Future[str] = asyncio.Future()
    waiting = asyncio.ensure_future(within(clock, 10, answer))
    await settle(1)

    clock.advance(9.9)
    answer.set_result("yes")

    assert await waiting == "yes"
    assert clock.pending == 0


async def test_limit_cancels_what_is_waited_for_and_names_the_deadline() -> None:
    clock = FakeClock()
    answer: asyncio.Future[str] = asyncio.Future()
    waiting = asyncio.ensure_future(within(clock, 10, answer))
    await settle(1)

    clock.advance(10)

    with pytest.raises(TimeoutError, match="deadline has elapsed"):
        await waiting
    assert answer.cancelled()


async def test_cancellation_from_outside_is_not_a_timeout() -> None:
    clock = FakeClock()
    answer: asyncio.Future[str] = asyncio.Future()
    waiting = asyncio.ensure_future(within(clock, 10, answer))
    await settle(1)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert answer.cancelled()
    assert clock.pending == 0


async def test_error_of_what_is_waited_for_is_passed_on() -> None:
    async def fail() -> None:
        raise ConnectionRefusedError

    clock = FakeClock()

    with pytest.raises(ConnectionRefusedError):
        await within(clock, 10, fail())

    assert clock.pending == 0


async def test_cancellation_that_came_first_is_no_timeout_when_the_limit_passes() -> None:
    clock = FakeClock()
    answer: asyncio.Future[str] = asyncio.Future()
    waiting = asyncio.ensure_future(within(clock, 10, answer))
    await settle(1)

    waiting.cancel()
    clock.advance(10)

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancellation_in_the_turn_in_which_the_limit_passed_is_not_swallowed() -> None:
    clock = FakeClock()
    answer: asyncio.Future[str] = asyncio.Future()
    waiting = asyncio.ensure_future(within(clock, 10, answer))
    await settle(1)

    clock.advance(10)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_loop_clock_runs_its_calls_on_the_loop() -> None:
    called = asyncio.Event()
    clock = LoopClock()
    before = clock.now()

    clock.call_later(0.001, called.set)
    clock.call_later(0.001, pytest.fail).cancel()

    await asyncio.wait_for(called.wait(), 5)
    assert clock.now() > before


def test_fake_clock_runs_due_calls_in_order_at_their_time() -> None:
    clock = FakeClock()
    start = clock.now()
    seen: list[tuple[str, float]] = []

    def schedule(name: str, delay: float) -> None:
        clock.call_later(delay, lambda: seen.append((name, clock.now() - start)))

    for name, delay in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        schedule(name, delay)

    clock.advance(2.5)

    assert seen == [("a", 1.0), ("b", 2.0)]
    assert (clock.now() - start, clock.pending) == (2.5, 1)


def test_fake_clock_runs_calls_that_calls_have_made() -> None:
    clock = FakeClock()
    seen: list[float] = []

    def again() -> None:
        seen.append(clock.now())
        if len(seen) < 3:
            clock.call_later(1, again)

    clock.call_later(1, again)
    clock.advance(10)

    assert seen == [1001.0, 1002.0, 1003.0]
