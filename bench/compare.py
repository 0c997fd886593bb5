# SPDX-License-Identifier: Apache-2.0
"""Compares ways from a client to a server, side by side in namespaces: `make bench`."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import contestants, debian, gauges, libraries, options, performance, report, sources
from bench.debian import RootError
from bench.lane import PROGRAMS, Cores, Lane, LaneError, start
from bench.report import Results
from bench.sources import BuildError
from ztunnel_py.cli import topology
from ztunnel_py.cli.topology import REPOSITORY, Mesh, NamespacesForbiddenError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.contestants import Contestant
    from bench.lane import Variant
    from bench.measures import Measure
    from bench.options import Options

EXIT_FORBIDDEN = 77
AWAKE_S = 3600
LATENCY_FILE = Path("/dev/cpu_dma_latency")
NO_LATENCY = bytes(4)
NEEDED_FILES = 40_000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    chosen = options.parse(argv)
    known = options.contestants_of(chosen)
    measures = options.measures_of(chosen)
    build()
    allow_files()
    try:
        if any(one.engine for one in known):
            sources.build()
        if chosen.debian13:
            debian.make()
        conditions = conditions_of(chosen)
        with place(chosen.logs) as folder:
            results = compare(known, measures, chosen, folder)
    except (BuildError, RootError) as error:
        raise SystemExit(str(error)) from error
    except NamespacesForbiddenError as error:
        print(error, file=sys.stderr)
        return EXIT_FORBIDDEN
    show(results, known, measures, chosen, conditions)
    return 1 if results.failures else 0


def compare(
    known: Sequence[Contestant],
    measures: Sequence[Measure],
    chosen: Options,
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
            lanes.append(Lane(one, *sides, folder))
            lanes[-1].prepare()
        for variant, group in itertools.groupby(measures, lambda measure: measure.variant):
            with awake(mesh, variant):
                run_phase(variant, list(group), lanes, chosen, results)
    return results


@contextlib.contextmanager
def awake(mesh: Mesh, variant: Variant) -> Iterator[None]:
    """Keeps the cores from halting if the variant gives each side one.

    The kernel polls when idle as long as someone asks for no latency. Who may not ask has
    programs of idle priority spin; those may hold a core until the next tick.
    """
    if not variant.is_pinned:
        yield
        return
    try:
        held = LATENCY_FILE.open("wb", buffering=0)
    except OSError:
        with spinning(mesh, variant):
            yield
        return
    with held:
        held.write(NO_LATENCY)
        yield


@contextlib.contextmanager
def spinning(mesh: Mesh, variant: Variant) -> Iterator[None]:
    """A program of idle priority on each core in use."""
    cores = Cores.of(is_pinned=variant.is_pinned)
    argv = [str(PROGRAMS / "load"), "awake", str(AWAKE_S)]
    node = mesh.node("node-a")
    used = {cores.client, cores.server} - {None}
    programs = [start(node, cores.pinned(argv, core)) for core in used]
    try:
        yield
    finally:
        topology.stop(programs)


def run_phase(
    variant: Variant,
    measures: Sequence[Measure],
    lanes: Sequence[Lane],
    chosen: Options,
    results: Results,
) -> None:
    """Starts the proxies, takes turns among the lanes for each measure, ends the proxies."""
    wanted = [lane for lane in lanes if any(measure.applies(lane) for measure in measures)]
    try:
        for lane in wanted:
            say(f"{variant.name}: starting {lane.name}")
            lane.start(variant)
        for measure, repetition in turns(measures, chosen.repetitions):
            for lane in wanted:
                if measure.applies(lane):
                    say(f"{measure.name}: {lane.name}, repetition {repetition}")
                    run_once(measure, lane, chosen.seconds, results)
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


def conditions_of(chosen: Options) -> dict[str, str]:
    """What one must know to judge the figures."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        **gauges.machine(),
        "each": f"{chosen.repetitions} times {chosen.seconds:g} s",
    }
    if chosen.debian13:
        inside = debian.versions(Path(libraries.__file__))
        words = ", ".join(f"{key} {value}" for key, value in inside.items())
        found[contestants.ON_DEBIAN_13] = f"Debian 13, {words}"
    return found


def commit() -> str:
    """The commit that is measured."""
    git = ["git", "-C", str(REPOSITORY)]
    described = subprocess.run(
        [*git, "describe", "--always", "--dirty= with changes"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def show(
    results: Results,
    known: Sequence[Contestant],
    measures: Sequence[Measure],
    chosen: Options,
    conditions: dict[str, str],
) -> None:
    """Prints the table and writes the files."""
    names = [one.name for one in known]
    print(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    print(f"medians, ratios to {chosen.baseline}, smallest and largest below\n")
    for line in report.table(results, measures, names, chosen.baseline):
        print(line)
    if chosen.json:
        written = report.as_json(results, measures, names, chosen.baseline, conditions)
        chosen.json.write_text(json.dumps(written, indent=1) + "\n")
    if chosen.report:
        page = performance.markdown(results, measures, names, conditions, chosen.command)
        chosen.report.write_text(page)
        print(f"\nwritten to {chosen.report}")


def say(text: str) -> None:
    """Shows on a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
