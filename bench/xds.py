# SPDX-License-Identifier: Apache-2.0
"""Times the control plane's client on a large mesh: `python -m bench.xds`, a minute and a half.

70,000 workloads, 5,000 services and 1,000 policies come over real TLS from a server in a process
of its own, on another CPU if there is one. Lag is how late a timer of 1 ms is on the loop that
applies what comes; that counts whoever else uses the CPU, the row below it does not. Prints what it
measures beside the goals, and judges nothing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from bench.xds_server import CHURN_PER_S, CHURN_S
from ztunnel_py import config
from ztunnel_py.clock import LoopClock
from ztunnel_py.rpc.server import Server
from ztunnel_py.state.store import Store
from ztunnel_py.tasks import Tasks
from ztunnel_py.xds.client import Client
from ztunnel_py.xds.counts import Counts
from ztunnel_py.xds.ingest import Ingest
from ztunnel_py.xds.node import node
from ztunnel_py.xds.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICK_S = 0.001
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Turns:
    """How late timers were, and the CPU that the loop had used since each was set.

    In arrays, since a thousand a second would show in the memory that is measured.
    """

    def __init__(self) -> None:
        self.lag_s = array("d")
        self.cpu_s = array("d")


class Phase(NamedTuple):
    """What one phase took: seconds, and MB of resident memory after it."""

    wall_s: float
    cpu_s: float
    turns: Turns
    resident_mb: float

    def lag_ms(self) -> tuple[float, float]:
        """99.9th percentile and largest lag of the loop."""
        ordered = sorted(self.turns.lag_s)
        return ordered[len(ordered) * 999 // 1000] * 1000, ordered[-1] * 1000

    def longest_ms(self) -> float:
        """The most CPU that was used between two turns."""
        return max(self.turns.cpu_s) * 1000


class Lag:
    """Measures how late timers are."""

    def __init__(self) -> None:
        self._turns = Turns()

    async def run(self) -> None:
        """Measures for ever."""
        while True:
            due, cpu_s = time.perf_counter() + _TICK_S, time.thread_time()
            await asyncio.sleep(_TICK_S)
            self._turns.lag_s.append(time.perf_counter() - due)
            self._turns.cpu_s.append(time.thread_time() - cpu_s)

    def taken(self) -> Turns:
        """What was measured since the last time."""
        taken, self._turns = self._turns, Turns()
        return taken


class Control:
    """The server process."""

    def __init__(self, directory: str) -> None:
        argv = [sys.executable, "-m", "bench.xds_server", directory]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[:1])
        os.sched_setaffinity(self._process.pid, cpus[1:] or cpus)
        self.address = self._line()

    async def do(self, what: str) -> None:
        """Has it do something; returns when that is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        done = await asyncio.to_thread(self._line)
        assert done == what, "the server ended"

    def end(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


async def measure(directory: str) -> dict[str, Phase]:
    """All phases, by name."""
    control, lag, tasks, phases = Control(directory), Lag(), Tasks(), {}
    settings = config.load(
        {"XDS_ADDRESS": control.address, "XDS_ROOT_CA": f"{directory}/root-cert.pem"}
    )
    counts = Counts()
    ingest = Ingest(Store("node-1"), counts)
    channel = Server.discovery(settings).channel
    session = Session(node(settings))
    client = Client(channel, session, ingest, counts, LoopClock(), tasks)
    gc.freeze()  # as the program does when it is loaded
    tasks.spawn(client.run())
    tasks.spawn(lag.run())
    for name in ("rest", "push", "reconnect", "churn", "churn"):
        await asyncio.sleep(0.5)
        lag.taken()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        await control.do(name)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        name = f"{name} again" if name in phases else name
        phases[name] = Phase(wall_s, cpu_s, lag.taken(), _resident_mb())
    control.end()
    await tasks.stop()
    return phases


def rows(phases: dict[str, Phase]) -> Iterator[tuple[str, float, str, str]]:
    """Text, value, unit and goal of each line."""
    push, again = phases["push"], phases["reconnect"]
    yield "nothing happens: resident", phases["rest"].resident_mb, "MB", ""
    yield from _lag(phases["rest"], "", "")
    yield "first push until ready", push.wall_s, "s", "≤ 12"
    yield "  CPU", push.cpu_s, "s", ""
    yield from _lag(push)
    yield "  resident after it", push.resident_mb, "MB", ""
    yield "reconnect with all versions: CPU", again.cpu_s * 1000, "ms", "≤ 200"
    yield "  until all is quiet", again.wall_s * 1000, "ms", ""
    yield from _lag(again)
    for name in ("churn", "churn again"):
        phase = phases[name]
        yield f"{name}, {CHURN_PER_S:,} workloads/s for {CHURN_S} s", phase.wall_s, "s", ""
        yield "  cores", phase.cpu_s / phase.wall_s, "", "≤ 0.5"
        yield from _lag(phase)
        yield "  resident after it", phase.resident_mb, "MB", ""


def _lag(
    phase: Phase, usual: str = "≤ 10", most: str = "≤ 50"
) -> Iterator[tuple[str, float, str, str]]:
    usual_ms, most_ms = phase.lag_ms()
    yield "  lag of the loop: 99.9th percentile", usual_ms, "ms", usual
    yield "  lag of the loop: most", most_ms, "ms", most
    yield "  CPU between two turns: most", phase.longest_ms(), "ms", ""


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as directory:
        phases = uvloop.run(measure(directory))
    print(f"{'measure':58}{'value':>10} {'':3}{'goal':>8}")
    for text, value, unit, goal in rows(phases):
        print(f"{text:58}{value:10.{2 if value < 10 else 0}f} {unit:3}{goal:>8}")


if __name__ == "__main__":
    main()
