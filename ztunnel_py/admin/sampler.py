# SPDX-License-Identifier: Apache-2.0
"""Says where this process spends its processor time, and what holds its memory.

Python threads are looked at many times a second, and the time that each has used since the last
look is counted where it is now. Threads of the native engine have no stack that Python could read:
each is one place, with all of its time, so that a profile never hides who works.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py.admin.profile import Frame, Stack, Types, encode

if TYPE_CHECKING:
    from types import CodeType, FrameType

FRAMES_MOST = 128
"""Of a stack; what is further out is left out."""
TRACED_FRAMES = 16
"""Of a place that has allocated memory."""
_NS = 1_000_000_000
_THREAD_CLOCK = 6
"""The scheduler's clock of one thread; see `CPUCLOCK_PERTHREAD` of the kernel."""
_TASKS = Path("/proc/self/task")

_Place = tuple[tuple["CodeType", int], ...]


def processor(seconds: float, hertz: int, stopped: threading.Event) -> bytes:
    """A profile of processor time over so many seconds, or until it is stopped. Blocks."""
    begun_ns, begun = time.time_ns(), time.monotonic()
    before = {tid: _used_ns(tid) for tid in _thread_ids()}
    known = dict(before)
    seen: dict[tuple[str, _Place], list[int]] = defaultdict(lambda: [0, 0])
    ends_at, due = begun + seconds, begun
    while not stopped.wait(max(0.0, due - time.monotonic())) and time.monotonic() < ends_at:
        _look(known, seen)
        due = max(due + 1 / hertz, time.monotonic())
    period_ns = _NS // hertz
    stacks = [
        Stack(tuple(_frame(*at) for at in place), (n, used_ns), thread)
        for (thread, place), (n, used_ns) in seen.items()
    ]
    duration_ns = int((time.monotonic() - begun) * _NS)
    types = Types((("samples", "count"), ("cpu", "nanoseconds")), ("cpu", "nanoseconds", period_ns))
    return encode(types, stacks + _native(before, period_ns), begun_ns, duration_ns)


def memory() -> bytes:
    """A profile of what Python has allocated since tracing began, and of all other memory."""
    snapshot = tracemalloc.take_snapshot()
    stacks = []
    for found in snapshot.statistics("traceback"):
        frames = tuple(
            Frame(f"{Path(one.filename).name}:{one.lineno}", one.filename, one.lineno)
            for one in reversed(found.traceback)
        )
        stacks.append(Stack(frames, (found.count, found.size)))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    other = pages * os.sysconf("SC_PAGE_SIZE") - sum(stack.values[1] for stack in stacks)
    stacks.append(Stack((Frame("[not traced: native code, and what is older]"),), (0, other)))
    types = Types((("inuse_objects", "count"), ("inuse_space", "bytes")), ("space", "bytes", 1))
    return encode(types, stacks, time.time_ns(), 0)


def _look(known: dict[int, int], seen: dict[tuple[str, _Place], list[int]]) -> None:
    """Counts what each Python thread has used since the last look."""
    frames = sys._current_frames()
    ours = threading.get_ident()
    for thread in threading.enumerate():
        tid, frame = thread.native_id, frames.get(thread.ident or 0)
        if tid is None or frame is None or thread.ident == ours:
            continue
        used_ns = _used_ns(tid)
        more_ns, known[tid] = used_ns - known.get(tid, 0), used_ns
        if more_ns > 0:
            counts = seen[thread.name, _place(frame)]
            counts[0] += 1
            counts[1] += more_ns


def _native(before: dict[int, int], period_ns: int) -> list[Stack]:
    """What the threads that Python does not know have used."""
    known = {thread.native_id for thread in threading.enumerate()}
    stacks = []
    for tid in _thread_ids():
        used_ns = _used_ns(tid) - before.get(tid, 0)
        if tid not in known and used_ns > 0:
            name = _name(tid)
            frames = (Frame(f"[native] {name}"),)
            stacks.append(Stack(frames, (max(1, used_ns // period_ns), used_ns), name))
    return stacks


def _place(frame: FrameType | None) -> _Place:
    place: list[tuple[CodeType, int]] = []
    while frame is not None and len(place) < FRAMES_MOST:
        place.append((frame.f_code, frame.f_lineno or 0))
        frame = frame.f_back
    return tuple(place)


def _frame(code: CodeType, line: int) -> Frame:
    return Frame(code.co_qualname, code.co_filename, line, code.co_firstlineno)


def _thread_ids() -> list[int]:
    return [int(name) for name in os.listdir(_TASKS)]


def _used_ns(tid: int) -> int:
    """Processor time of a thread; 0 if it has ended."""
    try:
        return time.clock_gettime_ns((~tid << 3) | _THREAD_CLOCK)
    except OSError:
        return 0


def _name(tid: int) -> str:
    try:
        return (_TASKS / str(tid) / "comm").read_text().strip()
    except OSError:
        return str(tid)
