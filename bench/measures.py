# SPDX-License-Identifier: Apache-2.0
"""What is measured: each measure loads one lane once and returns the values of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from bench import contestants, loads
from bench.lane import Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.lane import Lane
    from bench.loads import Values

MANY_WORKLOADS, MOST_WORKLOADS = 10_000, 70_000

POOLED = Variant("pinned")
UNPINNED = Variant("unpinned", is_pinned=False)
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
    needs_engine: bool = False
    """Looks inside one of our engines."""
    skips: tuple[str, ...] = ()

    def applies(self, lane: Lane) -> bool:
        """Whether the measure says anything about that contestant."""
        contestant = lane.contestant
        return (
            (contestant.has_proxies or not self.needs_proxies)
            and (contestant.reads_state or not self.needs_state)
            and (bool(contestant.engine) or not self.needs_engine)
            and contestant.name not in self.skips
        )


def _bulk(connections: int, variant: Variant, *, is_quick: bool = False) -> Measure:
    title = f"bulk, {_connections(connections)}{_suffix(variant)}"
    return Measure(
        f"bulk-{connections}{_name(variant)}",
        variant,
        partial(loads.bulk, connections=connections),
        (
            Row("rate", title, "Gb/s"),
            Row("cpu", "  CPU of both proxies", "s/GB"),
            Row("client_cpu", "  of the client's", "s/GB"),
            Row("server_cpu", "  of the server's", "s/GB"),
        ),
        is_quick=is_quick,
    )


def _connect(variant: Variant, *, is_quick: bool = False) -> Measure:
    return Measure(
        f"connect{_name(variant)}",
        variant,
        loads.connect,
        (
            Row("rate", f"new connections, {loads.CLIENTS} clients{_suffix(variant)}", "/s", 0),
            Row("cpu", "  CPU of both proxies", "µs each", 1),
            Row("client_cpu", "  of the client's", "µs each", 1),
            Row("server_cpu", "  of the server's", "µs each", 1),
        ),
        is_quick=is_quick,
    )


def _pingpong(connections: int, *, is_quick: bool) -> Measure:
    return Measure(
        f"pingpong-{connections}",
        POOLED,
        partial(loads.pingpong, connections=connections),
        (
            Row("rate", f"1-byte ping-pong, {_connections(connections)}", "rounds/s", 0),
            Row("p50_us", "  p50", "µs", 1),
            Row("p99_us", "  p99", "µs", 1),
            Row("p999_us", "  p99.9", "µs", 1),
            Row("cpu", "  CPU of both proxies", "µs/round", 1),
        ),
        is_quick=is_quick,
    )


def _workloads(variant: Variant) -> Measure:
    return Measure(
        f"memory-{variant.n_others}",
        variant,
        lambda lane, seconds: {"client": loads.at_rest(lane, seconds)["client"]},
        (Row("client", f"memory with {variant.name}", "MB", 1),),
        is_repeated=False,
        needs_proxies=True,
        needs_state=True,
    )


def _connections(n: int) -> str:
    return f"{n} connection{'s' if n > 1 else ''}"


def _name(variant: Variant) -> str:
    return "" if variant.is_pinned else "-unpinned"


def _suffix(variant: Variant) -> str:
    return "" if variant.is_pinned else ", unpinned"


_SERVERS = "  server's proxy"

MEASURES = (
    _bulk(1, POOLED, is_quick=True),
    _bulk(64, POOLED, is_quick=True),
    _connect(POOLED, is_quick=True),
    _pingpong(1, is_quick=True),
    _pingpong(64, is_quick=False),
    Measure(
        "upcall",
        POOLED,
        loads.upcall,
        (
            Row("p50_us", "verdict by Python on a miss, lone, p50", "µs", 1),
            Row("p99_us", "  p99", "µs", 1),
            Row("dial_us", "  from connect to the application, p50", "µs", 1),
        ),
        needs_engine=True,
        skips=(contestants.ON_DEBIAN_13,),
    ),
    _bulk(1, UNPINNED),
    _bulk(64, UNPINNED),
    _connect(UNPINNED),
    Measure(
        "http",
        UNPINNED,
        loads.http,
        (
            Row("p50_us", f"HTTP at {loads.HTTP_RATE}/s, unpinned, added p50", "µs", 1, True),
            Row("p99_us", "  added p99", "µs", 1, True),
            Row("cpu", "  vCPUs of both proxies", "", 3),
        ),
    ),
    Measure(
        "handshake",
        FRESH,
        loads.handshake,
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
        loads.at_rest,
        (
            Row("client", "memory at rest, client's proxy", "MB", 1),
            Row("server", _SERVERS, "MB", 1),
        ),
        is_repeated=False,
        needs_proxies=True,
    ),
    Measure(
        "memory-idle",
        AT_REST,
        loads.idle,
        (
            Row("client", f"memory/connection of {loads.IDLE_CONNECTIONS} idle, client's", "KiB"),
            Row("server", _SERVERS, "KiB"),
        ),
        is_repeated=False,
        needs_proxies=True,
    ),
    _workloads(MANY),
    _workloads(MOST),
    Measure(
        "short",
        SHORT,
        loads.short,
        (
            Row("first", f"short connections for {loads.SHORT_S} s: first 5000", "/s", 0),
            Row("last", "  last 5000", "/s", 0),
            Row("kept", "  last of first", ""),
        ),
        skips=("relay",),  # has no pool, and so no ports for that many
        is_repeated=False,
    ),
)
