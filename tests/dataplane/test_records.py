# SPDX-License-Identifier: Apache-2.0
"""Records are written soon, in batches, and all of them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, cast

import pytest

from tests.support.wait import settle, until
from ztunnel_py.dataplane.records import RECORDS_PER_TURN, Records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.dataplane.abc import DataPlane, RecordLog


class Recorder:
    """The side of the engine that records."""

    def __init__(self) -> None:
        self.record_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.waiting = 0
        self.batches: list[int] = []

    def put(self, count: int) -> None:
        """Something ended."""
        self.waiting += count
        os.eventfd_write(self.record_fd, 1)

    def write_records(self, limit: int, log: RecordLog) -> int:
        """As the contract."""
        n = min(limit, self.waiting)
        self.waiting -= n
        self.batches.append(n)
        if not self.waiting:
            os.eventfd_write(self.record_fd, 1)
            os.eventfd_read(self.record_fd)
        return n


@pytest.fixture
def plane() -> Iterator[Recorder]:
    plane = Recorder()
    yield plane
    os.close(plane.record_fd)


class Log:
    """A log of which only the room matters."""

    def __init__(self) -> None:
        self.n_free = 1 << 20

    def room(self) -> int:
        """As the contract."""
        return self.n_free


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def records(plane: Recorder, log: Log) -> Records:
    return Records(cast("DataPlane", plane), cast("RecordLog", log))


async def test_the_first_is_written_at_once_and_what_follows_together(
    plane: Recorder, records: Records
) -> None:
    records.start()
    plane.put(1)
    await until(lambda: plane.batches == [1], "the first record")

    for _ in range(5):
        plane.put(1)
        await asyncio.sleep(0)
    assert plane.batches == [1]
    await until(lambda: sum(plane.batches) == 6, "all records")
    records.stop()

    assert plane.batches[:2] == [1, 5]


async def test_after_a_quiet_time_the_descriptor_is_watched_again(
    plane: Recorder, records: Records
) -> None:
    records.start()
    plane.put(1)
    await until(lambda: plane.batches == [1, 0], "a look in vain")

    plane.put(1)
    await until(lambda: plane.batches[2:3] == [1], "the next record")
    records.stop()


async def test_a_turn_writes_a_bounded_number(plane: Recorder, records: Records) -> None:
    plane.put(3 * RECORDS_PER_TURN)
    records.start()
    await until(lambda: not plane.waiting, "all records")
    records.stop()

    assert plane.batches[:3] == [RECORDS_PER_TURN] * 3


async def test_what_is_left_when_it_stops_is_flushed(plane: Recorder, records: Records) -> None:
    records.start()
    records.stop()
    plane.put(RECORDS_PER_TURN + 1)
    await settle()
    assert not plane.batches

    await records.flush()

    assert plane.batches == [RECORDS_PER_TURN, 1, 0]


async def test_records_wait_in_the_engine_while_the_log_has_no_room(
    plane: Recorder, records: Records, log: Log
) -> None:
    log.n_free = 2
    records.start()
    plane.put(3)
    await until(lambda: plane.batches == [2], "as many as there is room for")
    log.n_free = 0
    await settle()
    assert plane.waiting == 1

    log.n_free = 10
    await until(lambda: not plane.waiting, "the rest")
    records.stop()


async def test_an_exit_does_not_wait_for_a_log_that_nobody_reads(
    plane: Recorder, records: Records, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztunnel_py.dataplane.records.FLUSH_S", 0.05)
    log.n_free = 0
    plane.put(1)

    await asyncio.wait_for(records.flush(), 5)

    assert plane.waiting == 1
