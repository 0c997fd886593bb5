# SPDX-License-Identifier: Apache-2.0
"""The log's writer thread: bounded, without loss."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.telemetry import writer
from ztunnel_py.telemetry.writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LINES = 12_000
_WIDTH = 100


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        os.close(fd)


def _line(number: int) -> bytes:
    return f"{number:0{_WIDTH - 1}}\n".encode()


def _await(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _read(fd: int, size: int) -> bytes:
    text = b""
    while len(text) < size:
        text += os.read(fd, size - len(text))
    return text


@pytest.mark.spec("ops-113")
def test_blocked_output_queues_at_most_10000_lines_and_loses_none(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    sent = 0

    def produce() -> None:
        nonlocal sent
        for number in range(_LINES):
            lines.put(_line(number))
            sent += 1

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    _await(lambda: len(lines) == writer.LIMIT)
    in_pipe = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ) // _WIDTH
    assert sent <= writer.LIMIT + in_pipe + writer.BATCH + 1
    assert producer.is_alive()

    received = _read(read, _LINES * _WIDTH)
    producer.join(20)
    lines.close()

    assert received == b"".join(map(_line, range(_LINES)))


def test_many_lines_at_once_are_bounded_too_and_none_is_lost(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    wanted = [_line(number) for number in range(_LINES)]
    n_put = 0

    def produce() -> None:
        nonlocal n_put
        n_put = lines.put_all(wanted)

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    _await(lambda: len(lines) == writer.LIMIT)
    assert producer.is_alive()

    received = _read(read, _LINES * _WIDTH)
    producer.join(20)
    lines.close()

    assert n_put == _LINES
    assert received == b"".join(wanted)
    assert lines.put_all(wanted) == 0


def test_non_blocking_output_loses_nothing(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    lines = LineWriter(write)
    for number in range(5000):
        lines.put(_line(number))

    received = _read(read, 5000 * _WIDTH)
    lines.close()

    assert received == b"".join(map(_line, range(5000)))


def test_lines_leave_in_batches(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = pipe
    batches: list[int] = []
    write_all = writer.write_all

    def recorded(fd: int, some: list[bytes]) -> None:
        batches.append(len(some))
        write_all(fd, some)

    monkeypatch.setattr(writer, "write_all", recorded)
    lines = LineWriter(write)
    for number in range(200):
        lines.put(_line(number))

    _read(read, 200 * _WIDTH)
    lines.close()

    assert max(batches) == writer.BATCH
    assert sum(batches) == 200


def test_close_gives_up_on_a_reader_that_never_reads(pipe: tuple[int, int]) -> None:
    _, write = pipe
    lines = LineWriter(write)
    for number in range(5000):
        lines.put(_line(number))
    started = time.monotonic()

    lines.close(0.1)

    assert time.monotonic() - started < 2.0
    assert lines.put(b"late\n") is False
