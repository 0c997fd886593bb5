# SPDX-License-Identifier: Apache-2.0
"""What bad clients do to the others: `python -m bench.faults`.

64 well-behaved connections through a mesh of two proxies send a byte and get it back, at a steady
rate far below what the proxies can do. Their p99 is taken in turns without and with one bad client
(`attack.py`), and the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import compare, contestants, sources
from bench.lane import ECHO_PORT, SOURCE_PORT, Lane, LaneError, Variant
from bench.sources import BuildError
from ztunnel_py.cli import topology
from ztunnel_py.cli.topology import REPOSITORY, Mesh, NamespacesForbiddenError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ztunnel_py.cli.topology import Pod

CONNECTIONS, RATE = 64, 4000
SECONDS, REPETITIONS = 3.0, 3
LEAD_S = 1.0
"""For the bad client to begin, and again for it to end."""
READY_S = 20.0
GOAL = 1.5
MESH = Variant("faults", is_pinned=False)


class Attack(NamedTuple):
    """One kind of bad client; its program is in `attack.py`."""

    name: str
    pod: str = "attacker"
    """Where it is: `attacker` speaks to the server's proxy itself, `neighbour` has a proxy of its
    own, `client` shares the proxy and the tunnel of the well-behaved."""
    port: int = ECHO_PORT


ATTACKS = (
    *(Attack(name) for name in ("rapid-reset", "continuation-flood", "ping-flood")),
    *(Attack(name) for name in ("settings-flood", "empty-data-flood", "tiny-data", "half-open")),
    Attack("stalled-readers", "client", SOURCE_PORT),
    Attack("destinations", "neighbour"),
)


class Outcome(NamedTuple):
    """What one repetition showed."""

    without_us: float
    """p99 without the bad client."""
    with_us: float
    grown_mb: float
    """What both proxies' memory has grown by."""
    told: str
    """What the bad client says it did."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a goal is missed or an attack failed."""
    options = parse(argv)
    compare.build()
    compare.allow_files()
    try:
        sources.build()
    except BuildError as error:
        raise SystemExit(str(error)) from error
    pods = {"client": "node-a", "neighbour": "node-a", "attacker": "node-a", "server": "node-b"}
    try:
        with compare.place(options.logs) as folder, Mesh(pods) as mesh:
            return report(options, run(options, mesh, folder))
    except NamespacesForbiddenError as error:
        print(error, file=sys.stderr)
        return compare.EXIT_FORBIDDEN


def run(
    options: argparse.Namespace, mesh: Mesh, folder: Path
) -> Iterator[tuple[Attack, list[Outcome] | str]]:
    """Each attack on proxies of its own, with what came of it or why it failed."""
    ours, server = contestants.ours(options.engine), mesh.pod("server")
    lane = Lane(ours, mesh.pod("client"), server, folder)
    lane.prepare()
    beside = Lane(ours, mesh.pod("neighbour"), server, folder)
    beside.client.enrol()
    for attack in ATTACKS:
        if options.only and attack.name not in options.only.split(","):
            continue
        try:
            lane.start(MESH)
            if attack.pod == beside.client.name:
                beside.join(MESH)
            if failure := lane.failure or beside.failure:
                raise LaneError(failure)
            repetitions = range(options.repetitions)
            pod = mesh.pod(attack.pod)
            yield attack, [once(lane, attack, pod, options.seconds) for _ in repetitions]
        except (LaneError, TopologyError, OSError, ValueError) as error:
            yield attack, str(error)
        finally:
            lane.stop()
            beside.stop()


def once(lane: Lane, attack: Attack, pod: Pod, seconds: float) -> Outcome:
    """The p99 without and with the attack.

    Raises:
        LaneError: a well-behaved connection failed, or the bad client could not begin.
    """
    without = pulse(lane, seconds)
    before = lane.memory()
    bad = begin(attack, pod, lane, LEAD_S + seconds)
    try:
        with_it = pulse(lane, seconds)
        grown = sum(now.share for now in lane.memory()) - sum(then.share for then in before)
        told, _ = bad.communicate(timeout=READY_S)
    except subprocess.TimeoutExpired as error:
        raise LaneError(f"{attack.name} did not end by itself") from error
    finally:
        topology.stop([bad])
    if bad.returncode != 0:
        raise LaneError(f"{attack.name} ended with {bad.returncode}")
    words = ", ".join(f"{key} {value}" for key, value in json.loads(told).items())
    return Outcome(without, with_it, grown / 1e6, words)


def pulse(lane: Lane, seconds: float) -> float:
    """The p99 of the well-behaved, in microseconds."""
    return lane.load("pulse", ECHO_PORT, CONNECTIONS, seconds * 1000, RATE)["p99_us"]


def begin(attack: Attack, pod: Pod, lane: Lane, seconds: float) -> subprocess.Popen[str]:
    """The bad client, once it is at work."""
    program = [sys.executable, "-m", "bench.attack", attack.name, lane.server.ipv4]
    environment = ["env", "-C", str(REPOSITORY), f"XDG_RUNTIME_DIR={lane.folder}"]
    argv = [*environment, *program, str(attack.port), str(seconds)]
    bad = subprocess.Popen(pod.command(argv), stdout=subprocess.PIPE, text=True)
    pod.programs.append(bad)
    assert bad.stdout is not None
    if bad.stdout.readline() != "ready\n":
        topology.stop([bad])
        raise LaneError(f"{attack.name} could not begin")
    time.sleep(LEAD_S / 2)
    return bad


def report(
    options: argparse.Namespace, outcomes: Iterator[tuple[Attack, list[Outcome] | str]]
) -> int:
    """Prints each line as soon as it is known."""
    print(f"{CONNECTIONS} connections, {RATE} round trips/s; p99 in µs; goal: x{GOAL:.2f}")
    print(f"{'':20}{'without':>9}{'with':>9}{'ratio':>8}{'MB':>8}  the bad client")
    is_good = True
    for attack, found in outcomes:
        if isinstance(found, str):
            print(f"{attack.name:20}FAILED: {found}", flush=True)
            is_good = False
            continue
        without, with_it, grown = (
            statistics.median(values) for values in zip(*(one[:3] for one in found), strict=True)
        )
        ratio = with_it / without
        is_good = is_good and ratio <= GOAL
        mark = "" if ratio <= GOAL else "  MISSED"
        numbers = f"{without:>9.0f}{with_it:>9.0f}{ratio:>8.2f}{grown:>8.1f}"
        print(f"{attack.name:20}{numbers}  {found[-1].told}{mark}", flush=True)
    return 0 if is_good else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    names = ", ".join(attack.name for attack in ATTACKS)
    parser = argparse.ArgumentParser(
        prog="faults.py", description=__doc__, epilog=f"attacks: {names}"
    )
    engines = contestants.OUR_ENGINES
    parser.add_argument("--engine", choices=engines, default=engines[0])
    parser.add_argument("--only", metavar="NAME,..", help="only these attacks")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of each attack")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep logs and settings there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
