# SPDX-License-Identifier: Apache-2.0
"""Ways to load a lane once; each returns the values it found, by name."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench import sources
from bench.lane import (
    DISCARD_PORT,
    ECHO_PORT,
    HTTP_PORT,
    IDLE_TUNNEL_S,
    ONCE_PORT,
    SHORT_PORT,
    SHORT_PORTS,
    LaneError,
)
from ztunnel_py.cli import topology
from ztunnel_py.cli.topology import REPOSITORY

if TYPE_CHECKING:
    from bench.gauges import Usage
    from bench.lane import Lane

Values = dict[str, float]

CLIENTS = 16
HTTP_RATE = 1000
HTTP_CONNECTIONS = 64
IDLE_CONNECTIONS = 10_000
OTHER_FILES = 100
SHORT_S = 30
SETTLE_S = 1.0
UPCALLS = 300
UPCALLS_TIMEOUT_S = 120.0


def bulk(lane: Lane, seconds: float, connections: int) -> Values:
    """Uploads; CPU seconds for each GB."""
    printed, usage = _loaded(lane, "bulk", DISCARD_PORT, connections, seconds * 1000)
    gigabytes = printed["bytes"] / 1e9
    return {"rate": gigabytes * 8 / printed["seconds"], **_sides(usage, gigabytes)}


def connect(lane: Lane, seconds: float) -> Values:
    """Connections that carry a byte each way."""
    printed, usage = _loaded(lane, "connect", ONCE_PORT, CLIENTS, seconds * 1000)
    n = printed["connections"]
    return {"rate": n / printed["seconds"], **_sides(usage, n, 1e6)}


def handshake(lane: Lane, seconds: float) -> Values:
    """Connections that stay open, each in a tunnel of its own."""
    time.sleep(IDLE_TUNNEL_S + SETTLE_S)  # tunnels of the last repetition are gone then
    before = lane.accepted()
    printed, usage = _loaded(lane, "hold", ECHO_PORT, 1, seconds * 1000)
    n = printed["connections"]
    tunnels = lane.accepted() - before - n
    if tunnels < n * 0.99:
        raise LaneError(f"{n} connections shared {tunnels} tunnels")
    latency = {"p50_us": printed["p50_us"]}
    return {"rate": tunnels / printed["seconds"], **latency, **_per(usage, tunnels, 1e6)}


def pingpong(lane: Lane, seconds: float, connections: int) -> Values:
    """A byte there and back, again and again."""
    printed, usage = _loaded(lane, "pingpong", ECHO_PORT, connections, seconds * 1000)
    rounds = printed["rounds"]
    shared = {key: printed[key] for key in ("p50_us", "p99_us", "p999_us")}
    return {"rate": rounds / printed["seconds"], **shared, **_per(usage, rounds, 1e6)}


def http(lane: Lane, seconds: float) -> Values:
    """Requests at a fixed rate."""
    arguments = (HTTP_CONNECTIONS, seconds * 1000, HTTP_RATE)
    printed, usage = _loaded(lane, "http", HTTP_PORT, *arguments)
    latency = {key: printed[key] for key in ("p50_us", "p99_us")}
    return {**latency, **_per(usage, printed["seconds"])}


def short(lane: Lane, _seconds: float) -> Values:
    """Connections that the client closes first, until its ports run out or not."""
    printed, _ = _loaded(lane, "short", SHORT_PORT, CLIENTS, SHORT_S * 1000, SHORT_PORTS)
    first, last = printed["first_rate"], printed["last_rate"]
    return {"first": first, "last": last, "kept": last / first}


def at_rest(lane: Lane, _seconds: float) -> Values:
    """Resident memory of proxies that do nothing, MB."""
    time.sleep(SETTLE_S)
    client, server = lane.memory()
    return {"client": client.resident / 1e6, "server": server.resident / 1e6}


def idle(lane: Lane, _seconds: float) -> Values:
    """Memory that connections take on which nothing happens, KiB each."""
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
    grown = [(now.share - then.share) / n for now, then in zip(after, before, strict=True)]
    return {"client": grown[0] / 1024, "server": grown[1] / 1024, "connections": n}


def upcall(lane: Lane, _seconds: float) -> Values:
    """What asking Python costs a connection, measured inside one process."""
    program = [sys.executable, "-m", "bench.upcall", lane.contestant.engine, str(UPCALLS)]
    try:
        done = subprocess.run(
            program,
            cwd=sources.RELEASE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=UPCALLS_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LaneError(f"bench.upcall did not end within {error.timeout} s") from error
    if done.returncode != 0:
        raise LaneError((done.stderr.strip() or "bench.upcall failed").splitlines()[-1])
    values: Values = json.loads(done.stdout)
    return values


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


def _sides(usage: Usage | None, n: float, scale: float = 1) -> Values:
    """The same, and of each proxy."""
    if usage is None:
        return {}
    one = scale / n
    sides = {"client_cpu": usage.client * one, "server_cpu": usage.server * one}
    return {**_per(usage, n, scale), **sides}
