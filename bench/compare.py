# SPDX-License-Identifier: Apache-2.0
"""Compares ways from a client to a server, side by side in namespaces: `make bench`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import contestants, gauges, report
from bench.lane import PROGRAMS, Cores, Lane, LaneError, start
from bench.measures import MEASURES
from bench.report import Results
from ztunnel_py.cli.topology import Mesh, NamespacesForbiddenError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.contestants import Contestant
    from bench.lane import Variant
    from bench.measures import Measure

EXIT_FORBIDDEN = 77
QUICK = (2.0, 3)
FULL = (5.0, 5)
AWAKE_S = 3600
NEEDED_FILES = 40_000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    options = parse(argv)
    known = contestants_of(options)
    measures = chosen(options)
    build()
    allow_files()
    conditions = conditions_of(options)
    try:
        with place(options.logs) as folder:
            results = compare(known, measures, options, folder)
    except NamespacesForbiddenError as error:
        print(error, file=sys.stderr)
        return EXIT_FORBIDDEN
    show(results, known, measures, options, conditions)
    return 1 if results.failures else 0


def compare(
    known: Sequence[Contestant],
    measures: Sequence[Measure],
    options: argparse.Namespace,
    folder: Path,
) -> Results:
    """Builds a lane for each contestant and runs all measures, phase by phase."""
    results = Results()
    pods: dict[str, str] = {}
    for one in known:
        pods |= {f"{one.name}-client": "node-a", f"{one.name}-server": "node-b"}
    with Mesh(pods) as mesh:
        lanes = []
        for one in known:
            sides = (mesh.pod(f"{one.name}-client"), mesh.pod(f"{one.name}-server"))
            lanes.append(Lane(one, *sides, folder, options.cores))
            lanes[-1].prepare()
        for core in {options.cores.client, options.cores.server} - {None}:
            awake = [str(PROGRAMS / "load"), "awake", str(AWAKE_S)]
            start(mesh.node("node-a"), options.cores.pinned(awake, core))
        for variant, group in itertools.groupby(measures, lambda measure: measure.variant):
            run_phase(variant, list(group), lanes, options, results)
    return results


def run_phase(
    variant: Variant,
    measures: Sequence[Measure],
    lanes: Sequence[Lane],
    options: argparse.Namespace,
    results: Results,
) -> None:
    """Starts the proxies, takes turns among the lanes for each measure, ends the proxies."""
    wanted = [lane for lane in lanes if any(measure.applies(lane) for measure in measures)]
    try:
        for lane in wanted:
            say(f"{variant.name}: starting {lane.name}")
            lane.start(variant)
        for measure, repetition in turns(measures, options.repetitions):
            for lane in wanted:
                if measure.applies(lane):
                    say(f"{measure.name}: {lane.name}, repetition {repetition}")
                    run_once(measure, lane, options.seconds, results)
    finally:
        say("")
        for lane in wanted:
            lane.stop()


def turns(measures: Sequence[Measure], repetitions: int) -> Iterator[tuple[Measure, int]]:
    """Each measure with the number of each of its repetitions."""
    for measure in measures:
        for repetition in range(1, (repetitions if measure.is_repeated else 1) + 1):
            yield measure, repetition


def run_once(measure: Measure, lane: Lane, seconds: float, results: Results) -> None:
    """Runs one measure once on one lane, unless it has failed there before."""
    if lane.failure:
        results.fail(measure.name, lane.name, lane.failure)
    if (measure.name, lane.name) in results.failures:
        return
    try:
        results.add(measure.name, lane.name, measure.run(lane, seconds))
    except (LaneError, TopologyError, OSError) as error:
        results.fail(measure.name, lane.name, str(error))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; those that depend on others are filled in."""
    names = [measure.name for measure in MEASURES]
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, epilog=f"measures: {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="few measures, 3 times 2 s")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also compare a program that takes ztunnel's environment",
    )
    parser.add_argument("--only", metavar="NAME,..", help="only these contestants")
    parser.add_argument("--measures", metavar="NAME,..", help="only these measures")
    parser.add_argument("--baseline", default="envoy", help="what ratios refer to (%(default)s)")
    parser.add_argument("--seconds", type=float, help="of each measure")
    parser.add_argument("--repetitions", type=int, help="of each measure")
    parser.add_argument(
        "--unpinned",
        action="store_true",
        help="let everything run anywhere, a worker for each core; else the client "
        "and its proxy share one core, the server and its proxy another",
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep logs and settings there")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all values there")
    options = parser.parse_args(argv)
    seconds, repetitions = QUICK if options.quick else FULL
    options.seconds = options.seconds or seconds
    options.repetitions = options.repetitions or repetitions
    options.cores = cores(options.unpinned)
    return options


def cores(is_unpinned: bool) -> Cores:
    """Two cores of this machine, or all of them."""
    usable = sorted(os.sched_getaffinity(0))
    if is_unpinned:
        return Cores(None, None, len(usable))
    return Cores(usable[0], usable[min(1, len(usable) - 1)], 1)


def contestants_of(options: argparse.Namespace) -> list[Contestant]:
    """The contestants asked for, in the order of the table."""
    known: list[Contestant] = [contestants.Direct(), contestants.Relays(), contestants.Envoys()]
    for text in options.peer:
        name, _, path = text.partition("=")
        if not os.access(path, os.X_OK):
            raise SystemExit(f"--peer {text}: no program at {path!r}; write NAME=PATH")
        if not name.isalnum() or name in {*contestants.OUR_ENGINES, *(one.name for one in known)}:
            raise SystemExit(f"--peer {text}: {name!r} is taken or not made of letters and digits")
        known.append(contestants.foreign(name, Path(path).resolve()))
    known += [contestants.ours(engine) for engine in contestants.OUR_ENGINES]
    wanted = select(options.only, [one.name for one in known], "--only")
    return [one for one in known if one.name in wanted]


def chosen(options: argparse.Namespace) -> list[Measure]:
    """The measures asked for."""
    wanted = select(options.measures, [measure.name for measure in MEASURES], "--measures")
    return [
        measure
        for measure in MEASURES
        if measure.name in wanted and (measure.is_quick or options.measures or not options.quick)
    ]


def select(text: str | None, names: Sequence[str], option: str) -> set[str]:
    """The names in a comma-separated list; all if there is no list."""
    wanted = set(text.split(",")) if text else set(names)
    if unknown := wanted - set(names):
        raise SystemExit(
            f"{option}: unknown {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    return wanted


@contextlib.contextmanager
def place(logs: Path | None) -> Iterator[Path]:
    """A folder for what the programs write; it stays if the user named one."""
    if logs:
        logs.mkdir(parents=True, exist_ok=True)
        yield logs.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="ztunnel-bench-") as folder:
            yield Path(folder)


def build() -> None:
    """Compiles the load generator, the sink and the relay."""
    subprocess.run(["make", "--silent", "-C", str(Path(__file__).parent)], check=True)


def allow_files() -> None:
    """Raises the limit of open files for all programs started here, as far as is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(NEEDED_FILES, hard),) * 2)
    except ValueError:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def conditions_of(options: argparse.Namespace) -> dict[str, str]:
    """What one must know to judge the figures."""
    return {
        **gauges.machine(),
        "pinned": str(not options.unpinned),
        "workers": str(options.cores.workers),
        "seconds": f"{options.seconds:g}",
        "repetitions": str(options.repetitions),
    }


def show(
    results: Results,
    known: Sequence[Contestant],
    measures: Sequence[Measure],
    options: argparse.Namespace,
    conditions: dict[str, str],
) -> None:
    """Prints the table and writes the JSON file."""
    names = [one.name for one in known]
    print(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    print(f"medians, ratios to {options.baseline}, smallest and largest below\n")
    for line in report.table(results, measures, names, options.baseline):
        print(line)
    if options.json:
        written = report.as_json(results, measures, names, options.baseline, conditions)
        options.json.write_text(json.dumps(written, indent=1) + "\n")


def say(text: str) -> None:
    """Shows on a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
