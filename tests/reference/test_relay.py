# SPDX-License-Identifier: Apache-2.0
"""The relay between streams that take bytes in random portions."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel_py.errors import Reason
from ztunnel_py.reference.relay import Relay, os_error_text

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from ztunnel_py.reference.io import Sink

PORTIONS = st.lists(st.integers(0, 2560), min_size=1, max_size=60)


class Choppy:
    """An `Io` in memory: what is written leaves when the test says so, in its portions."""

    def __init__(self) -> None:
        self.sink: Sink
        self.left = b""
        self.has_end = False
        self.is_paused = True
        self.is_broken = False
        self.is_closed = False
        self._waiting = b""
        self._end_waits = False

    @property
    def is_congested(self) -> bool:
        """Something waits."""
        return bool(self._waiting)

    @property
    def unsent(self) -> int:
        """How much."""
        return len(self._waiting)

    def start(self, sink: Sink) -> None:
        """Pushes from now on."""
        self.sink, self.is_paused = sink, False

    def write(self, data: bytes) -> None:
        """Waits to leave."""
        assert not self._end_waits, "written after its end"
        self._waiting += data

    def end(self) -> None:
        """Leaves after the bytes."""
        self._end_waits = True
        self.has_end = not self._waiting

    def pause(self) -> None:
        """Pushes no more."""
        self.is_paused = True

    def resume(self) -> None:
        """Pushes again."""
        self.is_paused = False

    def close(self) -> None:
        """Is over."""
        self.is_closed = True

    # --- what a test does

    def leave(self, length: int) -> None:
        """So many bytes go out."""
        if not self._waiting:
            return
        self.left += self._waiting[:length]
        self._waiting = self._waiting[length:]
        if not self._waiting:
            self.has_end = self._end_waits
            self.sink.writable()

    def fail(self, code: int = errno.ECONNRESET) -> None:
        """Breaks."""
        self.is_broken = True
        self._waiting = b""
        self.sink.failed(OSError(code, "broken"))


class Joined:
    """A relay between two of them."""

    def __init__(self) -> None:
        self.client, self.upstream = Choppy(), Choppy()
        self.counts = [0, 0]
        self.relay = Relay(self.client, self.upstream, self._up, self._down)
        self.running = asyncio.ensure_future(self.relay.run())

    async def ending(self) -> tuple[Reason, str]:
        """How it ended."""
        return await asyncio.wait_for(self.running, 5)

    def _up(self, length: int) -> None:
        self.counts[0] += length

    def _down(self, length: int) -> None:
        self.counts[1] += length


async def joined() -> Joined:
    """A relay that runs."""
    made = Joined()
    await asyncio.sleep(0)
    return made


def run(work: Coroutine[Any, Any, None]) -> None:
    """On a loop of its own: hypothesis runs its examples one after another."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


@given(pieces=PORTIONS, portions=PORTIONS)
def test_bytes_arrive_whole_and_in_order_through_a_writer_of_random_portions(
    pieces: list[int], portions: list[int]
) -> None:
    async def scenario() -> None:
        pair = await joined()
        sent = b""
        waiting = [bytes([n % 251]) * size for n, size in enumerate(pieces) if size]
        turn = 0

        while waiting or pair.upstream.is_congested:
            if waiting and not pair.client.is_paused:
                sent += waiting[0]
                pair.client.sink.received(waiting.pop(0))
            pair.upstream.leave(portions[turn % len(portions)] or 1)
            turn += 1
        pair.client.sink.ended()
        pair.upstream.sink.ended()

        assert await pair.ending() == (Reason.OK, "")
        assert pair.upstream.left == sent
        assert pair.counts == [len(sent), 0]
        assert pair.upstream.has_end

    run(scenario())


async def test_source_is_paused_while_its_target_is_congested() -> None:
    pair = await joined()

    pair.client.sink.received(b"1234")
    assert pair.client.is_paused
    pair.upstream.leave(3)
    assert pair.client.is_paused
    pair.upstream.leave(1)

    assert not pair.client.is_paused
    assert not pair.upstream.is_paused
    pair.running.cancel()


async def test_end_follows_the_bytes_and_leaves_the_other_direction_open() -> None:
    pair = await joined()
    pair.client.sink.received(b"last")
    pair.client.sink.ended()
    assert not pair.upstream.has_end
    pair.upstream.leave(4)
    assert pair.upstream.has_end
    assert not pair.running.done()

    pair.upstream.sink.received(b"answer")
    pair.client.leave(6)
    pair.upstream.sink.ended()

    assert await pair.ending() == (Reason.OK, "")
    assert (pair.client.left, pair.client.has_end) == (b"answer", True)


@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN])
async def test_reset_is_an_end_for_the_other_side_and_no_error(code: int) -> None:
    pair = await joined()

    pair.client.fail(code)
    assert pair.upstream.has_end
    pair.upstream.sink.ended()

    assert await pair.ending() == (Reason.OK, "")


@pytest.mark.parametrize(
    ("side", "reason"), [("client", Reason.SEND), ("upstream", Reason.RECEIVE)]
)
async def test_other_errors_are_named_by_direction(side: str, reason: Reason) -> None:
    pair = await joined()
    broken, other = pair.client, pair.upstream
    if side == "upstream":
        broken, other = other, broken

    broken.fail(errno.ETIMEDOUT)
    other.sink.ended()

    ending, detail = await pair.ending()
    assert ending is reason
    assert detail.startswith("io error: ")


async def test_direction_that_waits_for_a_broken_target_is_over() -> None:
    pair = await joined()
    pair.client.sink.received(b"stuck")
    pair.client.sink.ended()

    pair.upstream.fail()

    assert await pair.ending() == (Reason.OK, "")


async def test_both_sides_are_closed_when_it_is_cancelled() -> None:
    pair = await joined()

    pair.running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await pair.running
    assert pair.client.is_closed
    assert pair.upstream.is_closed


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(111, "x"), "Connection refused (os error 111)"),
        (TimeoutError("deadline has elapsed"), "deadline has elapsed"),
        (OSError(), "OSError"),
    ],
)
def test_errors_are_worded_as_ztunnel_does(error: OSError, text: str) -> None:
    assert os_error_text(error) == text
