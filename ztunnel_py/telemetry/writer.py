# SPDX-License-Identifier: Apache-2.0
"""Writes log lines from a thread of its own: no loss, bounded memory.

The queue holds `LIMIT` lines. While it is full, `put` blocks its caller: a reader of the log that
stalls slows the proxy down rather than costing lines, as in ztunnel. Lines leave in batches, one
system call for up to `BATCH` of them. Source: spec identity-ops, section E.3.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 10_000
"""Lines that wait at most."""
BATCH = 64
"""Lines written by one system call at most."""
GATHER_S = 0.001
"""How long the thread lets lines gather after a quiet time, seconds: one wake for many lines."""
FLUSH_S = 1.0
"""How long an exit waits for the queue to empty, seconds."""


class LineWriter:
    """A queue of lines and the thread that empties it into a file descriptor.

    `put` may be called from any thread. The descriptor stays open and stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._not_empty = threading.Condition(self._lock)
        self._not_full = threading.Condition(self._lock)
        self._is_waiting = False
        self._is_closing = False
        # A daemon: a log reader that never reads must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, line: bytes) -> bool:
        """Queues a line that ends with a newline; false once the writer is closing."""
        return self.put_all((line,)) == 1

    def put_all(self, lines: Sequence[bytes]) -> int:
        """Queues many, under one lock; returns how many: not all once the writer is closing."""
        n_put = 0
        with self._lock:
            while n_put < len(lines):
                while len(self._lines) >= LIMIT and not self._is_closing:
                    self._not_full.wait()
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

    def _run(self) -> None:
        while batch := self._take():
            # Nobody could be told that the log cannot be written.
            with contextlib.suppress(OSError):
                write_all(self._fd, batch)

    def _take(self) -> list[bytes]:
        """The next lines to write; none when closed and empty."""
        with self._lock:
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
