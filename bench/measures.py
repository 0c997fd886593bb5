# SPDX-License-Identifier: Apache-2.0
"""What is measured: each measure loads one lane once and returns the values of its rows."""

from __future__ import annotations

import resource
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bench.lane import (
    DISCARD_PORT,
    ECHO_PORT,
    HTTP_PORT,
    IDLE_TUNNEL_S,
    ONCE_PORT,
    SHORT_PORT,
    SHORT_PORTS,
    LaneError,
    Variant,
)
from ztunnel_py.cli import topology

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.gauges import Usage
    from bench.lane import Lane

Values = dict[str, float]

CLIENTS = 16
HTTP_RATE = 1000
HTTP_CONNECTIONS = 16
IDLE_CONNECTIONS = 10_000
OTHER_FILES = 100
SHORT_S = 30
MANY_WORKLOADS, MOST_WORKLOADS = 10_000, 70_000
SETTLE_S = 1.0

POOLED = Variant("pooled tunnels")
FRESH = Variant("a tunnel for each connection", shares_tunnels=False)
AT_REST = Variant("memory")
MANY = Variant("10,000 workloads", n_others=MANY_WORKLOADS, ready_s=120)
MOST = Variant("70,000 workloads", n_others=MOST_WORKLOADS, ready_s=240)
SHORT = Variant("short connections")


class Row(NamedTuple):
    """One line of the table; `key` names its value."""

    key: str
    title: str
    unit: str
    digits: int = 2
    is_added: bool = False
    """Shown as what a proxy adds to the value of the direct way."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing to measure."""

    name: str
    variant: Variant
    run: Callable[[Lane, float], Values]
    """Loads a lane for so many seconds; raises LaneError."""
    rows: tuple[Row, ...]
    is_quick: bool = False
    is_repeated: bool = True
    needs_proxies: bool = False
    needs_state: bool = False
    skips: tuple[str, ...] = ()

    def applies(self, lane: Lane) -> bool:
        """Whether the measure says anything about that contestant."""
        contestant = lane.contestant
        return (
            (contestant.has_proxies or not self.needs_proxies)
            and (contestant.reads_state or not self.needs_state)
            and contestant.name not in self.skips
        )


def _loaded(
    lane: Lane, kind: str, port: int, *arguments: float
) -> tuple[dict[str, float], Usage | None]:
    """Runs the generator; returns what it printed and the CPU time that the proxies used for it."""
    before = lane.cpu()
    printed = lane.load(kind, port, *arguments)
    after = lane.cpu()
    if failed := printed.get("failed"):
        total = failed + printed["connections"]
        raise LaneError(f"{failed} of {total} connections failed: {printed['failure']}")
    return printed, after - before if after and before else None


def _per(usage: Usage | None, n: float, scale: float = 1) -> Values:
    """CPU time of both proxies for each of `n`."""
    return {"cpu": usage.both / n * scale} if usage else {}


def _bulk(lane: Lane, seconds: float, connections: int) -> Values:
    printed, usage = _loaded(lane, "bulk", DISCARD_PORT, connections, seconds * 1000)
    gigabytes = printed["bytes"] / 1e9
    values = {"rate": gigabytes * 8 / printed["seconds"]}
    if usage:
        values["client_cpu"] = usage.client / gigabytes
        values["server_cpu"] = usage.server / gigabytes
    return values


def _connect(lane: Lane, seconds: float) -> Values:
    printed, usage = _loaded(lane, "connect", ONCE_PORT, CLIENTS, seconds * 1000)
    n = printed["connections"]
    return {"rate": n / printed["seconds"], **_per(usage, n, 1e6)}


def _handshake(lane: Lane, seconds: float) -> Values:
    time.sleep(IDLE_TUNNEL_S + SETTLE_S)  # tunnels of the last repetition are gone then
    before = lane.accepted()
    printed, usage = _loaded(lane, "hold", ECHO_PORT, 1, seconds * 1000)
    n = printed["connections"]
    tunnels = lane.accepted() - before - n
    if tunnels < n * 0.99:
        raise LaneError(f"{n} connections shared {tunnels} tunnels")
    latency = {"p50_us": printed["p50_us"]}
    return {"rate": tunnels / printed["seconds"], **latency, **_per(usage, tunnels, 1e6)}


def _pingpong(lane: Lane, seconds: float, connections: int) -> Values:
    printed, usage = _loaded(lane, "pingpong", ECHO_PORT, connections, seconds * 1000)
    rounds = printed["rounds"]
    shared = {key: printed[key] for key in ("p50_us", "p99_us", "p999_us")}
    return {"rate": rounds / printed["seconds"], **shared, **_per(usage, rounds, 1e6)}


def _http(lane: Lane, seconds: float) -> Values:
    arguments = (HTTP_CONNECTIONS, seconds * 1000, HTTP_RATE)
    printed, usage = _loaded(lane, "http", HTTP_PORT, *arguments)
    latency = {key: printed[key] for key in ("p50_us", "p99_us")}
    return {**latency, **_per(usage, printed["seconds"])}


def _short(lane: Lane, _seconds: float) -> Values:
    printed, _ = _loaded(lane, "short", SHORT_PORT, CLIENTS, SHORT_S * 1000, SHORT_PORTS)
    return {"first": printed["first_rate"], "last": printed["last_rate"]}


def _at_rest(lane: Lane, _seconds: float) -> Values:
    time.sleep(SETTLE_S)
    client, server = lane.memory()
    return {"client": client / 1e6, "server": server / 1e6}


def _idle(lane: Lane, _seconds: float) -> Values:
    time.sleep(SETTLE_S)
    before = lane.memory()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    n = min(IDLE_CONNECTIONS, files // 2 - OTHER_FILES)  # relays have two for each
    argv = lane.client.command(lane.load_argv("idle", ECHO_PORT, n))
    holder = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lane.client.programs.append(holder)
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if not holder.stdout.readline():
            raise LaneError(holder.stderr.read().strip() or "the load generator ended")
        time.sleep(SETTLE_S)
        after = lane.memory()
    finally:
        topology.stop([holder])
    grown = [(now - then) / n for now, then in zip(after, before, strict=True)]
    return {"client": grown[0] / 1e3, "server": grown[1] / 1e3, "connections": n}


def _bulk_measure(connections: int, *, is_quick: bool) -> Measure:
    title = f"bulk, {connections} connection{'s' if connections > 1 else ''}"
    return Measure(
        f"bulk-{connections}",
        POOLED,
        lambda lane, seconds: _bulk(lane, seconds, connections),
        (
            Row("rate", title, "Gb/s"),
            Row("client_cpu", "  CPU of the client's proxy", "s/GB"),
            Row("server_cpu", "  CPU of the server's proxy", "s/GB"),
        ),
        is_quick=is_quick,
    )


def _pingpong_measure(connections: int, *, is_quick: bool) -> Measure:
    title = f"1-byte ping-pong, {connections} connection{'s' if connections > 1 else ''}"
    return Measure(
        f"pingpong-{connections}",
        POOLED,
        lambda lane, seconds: _pingpong(lane, seconds, connections),
        (
            Row("rate", title, "rounds/s", 0),
            Row("p50_us", "  p50", "µs", 1),
            Row("p99_us", "  p99", "µs", 1),
            Row("p999_us", "  p99.9", "µs", 1),
            Row("cpu", "  CPU of both proxies", "µs/round", 1),
        ),
        is_quick=is_quick,
    )


def _workloads_measure(variant: Variant) -> Measure:
    return Measure(
        f"memory-{variant.n_others}",
        variant,
        lambda lane, seconds: {"client": _at_rest(lane, seconds)["client"]},
        (Row("client", f"memory with {variant.name}", "MB", 1),),
        is_repeated=False,
        needs_proxies=True,
        needs_state=True,
    )


_MEMORY_ROWS = ("  client's proxy", "  server's proxy")

MEASURES = (
    _bulk_measure(1, is_quick=True),
    _bulk_measure(8, is_quick=False),
    _bulk_measure(64, is_quick=True),
    Measure(
        "connect",
        POOLED,
        _connect,
        (
            Row("rate", f"new connections, {CLIENTS} clients", "/s", 0),
            Row("cpu", "  CPU of both proxies", "µs each", 1),
        ),
        is_quick=True,
    ),
    _pingpong_measure(1, is_quick=True),
    _pingpong_measure(64, is_quick=False),
    Measure(
        "http",
        POOLED,
        _http,
        (
            Row("p50_us", f"HTTP at {HTTP_RATE}/s, added p50", "µs", 1, is_added=True),
            Row("p99_us", "  added p99", "µs", 1, is_added=True),
            Row("cpu", "  vCPUs of both proxies", "", 3),
        ),
    ),
    Measure(
        "handshake",
        FRESH,
        _handshake,
        (
            Row("rate", "new tunnels, one client", "/s", 0),
            Row("p50_us", "  p50 of the first byte there and back", "µs", 0),
            Row("cpu", "  CPU of both proxies", "µs each", 0),
        ),
        needs_proxies=True,
    ),
    Measure(
        "memory",
        AT_REST,
        _at_rest,
        (
            Row("client", "memory at rest, client's proxy", "MB", 1),
            Row("server", _MEMORY_ROWS[1], "MB", 1),
        ),
        is_repeated=False,
        needs_proxies=True,
    ),
    Measure(
        "memory-idle",
        AT_REST,
        _idle,
        (
            Row("client", f"memory/connection of {IDLE_CONNECTIONS} idle, client's", "KB", 2),
            Row("server", _MEMORY_ROWS[1], "KB", 2),
        ),
        is_repeated=False,
        needs_proxies=True,
    ),
    _workloads_measure(MANY),
    _workloads_measure(MOST),
    Measure(
        "short",
        SHORT,
        _short,
        (
            Row("first", f"short connections for {SHORT_S} s: first 5000", "/s", 0),
            Row("last", "  last 5000", "/s", 0),
        ),
        skips=("relay",),  # has no pool, and so no ports for that many
        is_repeated=False,
    ),
)
