# SPDX-License-Identifier: Apache-2.0
"""The log's writer thread: bounded, without loss."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.telemetry import writer
from ztunnel_py.telemetry.writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LINES = 12_000
_WIDTH = 100


def _abandon(lines: LineWriter, read: int) -> None:
    """Lets the thread of a blocked writer end, so that it writes into no later pipe."""
    os.set_blocking(read, False)
    while lines.is_alive:
        lines.close(0.001)
        with contextlib.suppress(BlockingIOError):
            os.read(read, 1 << 16)


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
def test_blocked_output_queues_10000_lines_loses_none_of_them_and_counts_the_rest(
    pipe: tuple[int, int],
) -> None:
    read, write = pipe
    lost: Counter[str] = Counter()
    lines = LineWriter(write, lost)
    in_pipe = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ) // _WIDTH

    for number in range(_LINES):
        lines.put(_line(number))

    assert len(lines) == writer.LIMIT
    n_lost = lost[writer.FULL]
    n_kept = _LINES - n_lost
    assert writer.LIMIT <= n_kept <= writer.LIMIT + in_pipe + writer.BATCH + 1
    received = _read(read, n_kept * _WIDTH)
    notice, _, rest = received.partition(b" lines were lost\n")
    before = notice[: -len(str(n_lost))]
    rest += _read(read, n_kept * _WIDTH - len(before) - len(rest))
    lines.close()
    assert before + rest == b"".join(map(_line, range(n_kept)))
    assert notice.endswith(str(n_lost).encode())
    assert lost == {writer.FULL: n_lost}


def test_nobody_waits_twice_for_a_reader_that_has_stalled(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    lines.put_all([_line(0)] * _LINES)
    begun = time.monotonic()

    for number in range(1000):
        lines.put(_line(number))

    assert time.monotonic() - begun < 10 * writer.STALL_S
    _abandon(lines, read)


def test_who_can_wait_leaves_room_for_others(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    assert lines.room() == writer.LIMIT - writer.RESERVE

    while room := lines.room():
        lines.put_all([_line(0)] * room)

    assert writer.LIMIT - writer.RESERVE <= len(lines) < writer.LIMIT
    _abandon(lines, read)


def test_many_lines_at_once_arrive_where_the_output_is_slow(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    wanted = [_line(number) for number in range(_LINES)]
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(_read(read, _LINES * _WIDTH)))
    reader.start()

    n_put = lines.put_all(wanted)
    reader.join(20)
    lines.close()

    assert n_put == _LINES
    assert received == [b"".join(wanted)]
    assert lines.put_all(wanted) == 0


def test_a_full_disk_loses_lines_says_so_once_and_is_counted(
    capfd: pytest.CaptureFixture[str],
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    lost: Counter[str] = Counter()
    lines = LineWriter(full, lost)

    for number in range(200):
        lines.put(_line(number))
    lines.close()
    os.close(full)

    assert lost == {writer.FAILED: 200}
    said = capfd.readouterr().err
    assert said.count("cannot write the log: No space left on device") == 1


def test_a_log_that_can_be_written_again_says_how_much_is_missing(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    lost: Counter[str] = Counter()
    lines = LineWriter(fd, lost)
    lines.put(b"a\n")
    _await(lambda: lost.total() == 1)

    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, fd)
    lines.put(b"b\n")
    lines.close()
    for each in (file, fd):
        os.close(each)

    assert (tmp_path / "log").read_bytes() == b"1 lines were lost\nb\n"
    assert "No space left" in capfd.readouterr().err


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
    read, write = pipe
    lines = LineWriter(write)
    for number in range(5000):
        lines.put(_line(number))
    started = time.monotonic()

    lines.close(0.1)

    assert time.monotonic() - started < 2.0
    assert lines.put(b"late\n") is False
    _abandon(lines, read)
