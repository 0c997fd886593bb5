# SPDX-License-Identifier: Apache-2.0
"""Writes log lines from a thread of its own: bounded memory, and nobody waits for long.

The queue holds `LIMIT` lines, and loses none of them however long the log's reader stalls. While it
is full, `put_all` waits for the reader, as ztunnel does; but if nothing moves for `STALL_S`, lines
are lost and counted from then on: a log that nobody reads must not end the traffic. A descriptor
that fails (a full disk, a pipe without a reader) loses lines, too. Once it can be written again,
the log says how many were lost. Lines leave in batches, one system call for up to `BATCH` of them.
Source: spec identity-ops, section E.3.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LIMIT = 10_000
"""Lines that wait at most."""
RESERVE = 1_000
"""Of these, for lines that cannot wait elsewhere; see `room`."""
BATCH = 64
"""Lines written by one system call at most."""
GATHER_S = 0.001
"""How long the thread lets lines gather after a quiet time, seconds: one wake for many lines."""
STALL_S = 0.2
"""How long a full queue is waited for, seconds."""
FLUSH_S = 1.0
"""How long an exit waits for the queue to empty, seconds."""
FULL, FAILED = "full", "failed"
"""Why lines were lost: the queue was full, or they could not be written."""
_STDERR = 2


class LineWriter:
    """A queue of lines and the thread that empties it into a file descriptor.

    `put_all` may be called from any thread. The descriptor stays open and stays the caller's.

    Args:
        lost: counts lines that were lost, by reason.
        notice: the line that says how many were.
    """

    def __init__(
        self,
        fd: int,
        lost: Counter[str] | None = None,
        notice: Callable[[int], bytes] = lambda count: b"%d lines were lost\n" % count,
    ) -> None:
        self._fd = fd
        self._lost: Counter[str] = Counter() if lost is None else lost
        self._notice = notice
        self._n_told = self._lost.total()
        self._lines: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._not_empty = threading.Condition(self._lock)
        self._not_full = threading.Condition(self._lock)
        self._is_waiting = False
        self._is_stalled = False
        self._is_failing = False
        self._is_closing = False
        # A daemon: a log reader that never reads must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def is_alive(self) -> bool:
        """Something may still be written."""
        return self._thread.is_alive()

    def room(self) -> int:
        """How many lines may be put without waiting, by who can keep them for later."""
        return max(0, LIMIT - RESERVE - len(self._lines))

    def put(self, line: bytes) -> bool:
        """Queues a line that ends with a newline; false once the writer is closing."""
        return self.put_all((line,)) == 1

    def put_all(self, lines: Sequence[bytes]) -> int:
        """Queues many, under one lock, or counts them as lost.

        Returns how many it took care of: not all once the writer is closing.
        """
        n_put = 0
        with self._lock:
            while n_put < len(lines):
                if not self._has_room():
                    self._lost[FULL] += len(lines) - n_put
                    return len(lines)
                if self._is_closing:
                    break
                room = LIMIT - len(self._lines)
                some = lines[n_put : n_put + room]
                self._lines.extend(some)
                n_put += len(some)
                if self._is_waiting:
                    self._is_waiting = False
                    self._not_empty.notify()
        return n_put

    def close(self, timeout_s: float = FLUSH_S) -> None:
        """Writes what is queued and ends the thread; gives up after `timeout_s`."""
        with self._lock:
            self._is_closing = True
            self._not_empty.notify_all()
            self._not_full.notify_all()
        self._thread.join(timeout_s)

    def _has_room(self) -> bool:
        """Waits for a while, once; under the lock. True as well once the writer is closing."""
        while len(self._lines) >= LIMIT and not self._is_closing:
            if self._is_stalled:
                return False
            self._is_stalled = not self._not_full.wait(STALL_S)
        return True

    def _run(self) -> None:
        while batch := self._take():
            n_lost = self._lost.total() - self._n_told
            if n_lost and self._write([self._notice(n_lost)]):
                self._n_told += n_lost
            if not self._write(batch):
                with self._lock:
                    self._lost[FAILED] += len(batch)

    def _write(self, lines: list[bytes]) -> bool:
        """Whether they were written; that they cannot be is said on standard error, once."""
        try:
            write_all(self._fd, lines)
        except OSError as error:
            if not self._is_failing and self._fd != _STDERR:
                why = f"{error.strerror}; lines are lost until that is over"
                with contextlib.suppress(OSError):
                    os.write(_STDERR, f"error: cannot write the log: {why}\n".encode())
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _take(self) -> list[bytes]:
        """The next lines to write; none when closed and empty."""
        with self._lock:
            self._is_stalled = False
            lines = self._lines
            if not lines and not self._is_closing:
                self._is_waiting = True
                while not lines and not self._is_closing:
                    self._not_empty.wait()
                self._not_empty.wait(GATHER_S)  # `put` is silent now; only `close` ends it early
            batch = [lines.popleft() for _ in range(min(BATCH, len(lines)))]
            self._not_full.notify(len(batch))
        return batch


def write_all(fd: int, lines: list[bytes]) -> None:
    """Writes all lines, also where the descriptor takes them piecemeal or is non-blocking.

    Raises:
        OSError: the descriptor failed; lines may be lost.
    """
    rest = lines
    while rest:
        try:
            written = os.writev(fd, rest)
        except BlockingIOError:
            # Somebody who shares the descriptor made it non-blocking.
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
            continue
        while rest and written >= len(rest[0]):
            written -= len(rest[0])
            rest = rest[1:]
        if written:
            rest = [rest[0][written:], *rest[1:]]
