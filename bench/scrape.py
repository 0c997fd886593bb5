# SPDX-License-Identifier: Apache-2.0
"""Times scrapes of many series: `python -m bench.scrape`, a few seconds.

The stats server runs on an event loop as in the program, with the counters of as many label sets
as make 10,000 series. One client in another process scrapes, then four do at once. Shown are how
long a scrape took, and the longest time for which the loop did nothing else: on the clock, which
neighbours disturb, and of processor time of its thread.
"""

from __future__ import annotations

import array
import asyncio
import gc
import http.client
import multiprocessing
import random
import statistics
import time
from typing import TYPE_CHECKING

import uvloop

from ztunnel_py.admin.stats import stats_server
from ztunnel_py.dataplane.labels import COLUMNS, Slots
from ztunnel_py.decide.verdict import TrafficLabels
from ztunnel_py.telemetry import exposition, metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.connection import Connection

    from ztunnel_py.dataplane.counters import SlotCounts

N_SERIES, N_SCRAPES = 10_000, 20
SERIES_PER_SET = 5
CODINGS = "identity", "gzip", "br", "zstd"
TICK_S = 0.0005


class Counters:
    """The native engine's, without an engine."""

    def __init__(self, n_sets: int) -> None:
        self._slots = Slots(65_536)
        for number in range(n_sets):
            self._slots.index(_labels(number))
        numbers = [random.randrange(1, 10**9) for _ in range(len(self._slots) * COLUMNS)]
        for first in range(0, len(numbers), COLUMNS):
            numbers[first + 5 : first + COLUMNS] = [0] * (COLUMNS - 5)  # two flags are usual
        self._packed = array.array("Q", numbers).tobytes()

    def slots(self) -> Mapping[TrafficLabels, SlotCounts]:
        """See the contract."""
        return self._slots.counts(self._packed)

    def events(self) -> Mapping[str, int]:
        """See the contract."""
        return {}


class Stalls:
    """Watches the loop."""

    def __init__(self) -> None:
        self._seen, self._used = time.perf_counter(), time.thread_time()
        self.reset()

    def reset(self) -> None:
        """Forgets the past."""
        self.longest_s = self.busiest_s = 0.0

    def tick(self) -> None:
        """Looks, and looks again soon."""
        now, used = time.perf_counter(), time.thread_time()
        self.longest_s = max(self.longest_s, now - self._seen - TICK_S)
        self.busiest_s = max(self.busiest_s, used - self._used)
        self._seen, self._used = now, used
        asyncio.get_running_loop().call_later(TICK_S, self.tick)


def main() -> None:
    """Prints the table."""
    uvloop.run(measure())


async def measure() -> None:
    """One row for each way to ask."""
    counters = Counters(N_SERIES // (SERIES_PER_SET + 1))

    async def lines() -> Iterator[str | None]:
        return exposition.lines(metrics.traffic(counters))

    server = stats_server(lines, (("127.0.0.1", 0),))
    await server.open()
    gc.freeze()
    stalls = Stalls()
    stalls.tick()
    print(
        f"{'':<12}{'first':>10}{'median':>10}{'slowest':>10}{'stall':>10}{'of CPU':>10}{'KiB':>10}"
    )
    for coding in CODINGS:
        await row(coding, server.address[1], coding, 1, stalls)
    await row("gzip, 4 at once", server.address[1], "gzip", 4, stalls)
    await server.close()


async def row(text: str, port: int, coding: str, n_clients: int, stalls: Stalls) -> None:
    """Scrapes, and prints what it took."""
    pipes = []
    for _ in range(n_clients):
        ours, theirs = multiprocessing.Pipe()
        client = multiprocessing.get_context("spawn").Process(
            target=scrape, args=(theirs, port, coding), daemon=True
        )
        client.start()
        pipes.append((ours, client))
    for ours, _ in pipes:
        await asyncio.to_thread(ours.recv)
    stalls.reset()
    for ours, _ in pipes:
        ours.send("go")
    answers = [await asyncio.to_thread(ours.recv) for ours, _ in pipes]
    stall_s, cpu_s = stalls.longest_s, stalls.busiest_s
    times = [each for times, _ in answers for each in times]
    shown = answers[0][0][0], statistics.median(times), max(times), stall_s, cpu_s
    columns = "".join(f"{seconds * 1e3:>7.1f} ms" for seconds in shown)
    print(f"{text:<14}{columns}{answers[0][1] // 1024:>10,}")
    for _, client in pipes:
        client.join()


def scrape(control: Connection, port: int, coding: str) -> None:
    """Asks again and again, and tells how long each took and how many bytes came."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    control.send("ready")
    control.recv()
    times, size = [], 0
    for _ in range(N_SCRAPES):
        begun = time.perf_counter()
        connection.request("GET", "/metrics", headers={"Accept-Encoding": coding})
        size = len(connection.getresponse().read())
        times.append(time.perf_counter() - begun)
    control.send((times, size))


def _labels(number: int) -> TrafficLabels:
    text = f"workload-{number:05}"
    values = {name: f"{name}-{text}" for name in TrafficLabels._fields[1:]}
    return TrafficLabels("source", **values)


if __name__ == "__main__":
    main()
