# SPDX-License-Identifier: Apache-2.0
"""Breaks the code one line at a time and looks whether the tests notice: `make mutants`.

Each break of tools/mutants.toml is made in a copy of the tree, and the tests that are named with
it are run there until one fails. Ends with 1 if a break survives, or does not apply any more. Two
copies work side by side. About ten minutes on two cores.

    python tools/mutants.py [TEXT]     # only breaks in whose file or text TEXT occurs
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tools" / "mutants.toml"
COPIED = ("ztunnel_py", "tests", "bench", "docs", "iptables", "pyproject.toml", "tools")
COPIES = 2
LONGEST_S = 120
_FAILED, _NONE_RAN = 1, 5


class Break(NamedTuple):
    """One change that makes the code wrong."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    every_test: bool
    """Not only those marked `spec`."""

    @property
    def title(self) -> str:
        """For a line of the table."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file.removeprefix('ztunnel_py/')}: {old[:48]} -> {new[:32] or 'nothing'}"


class Outcome(NamedTuple):
    """What became of a break."""

    what: str
    is_noticed: bool
    took_s: float


def main(argv: Sequence[str]) -> int:
    """Prints one line per break; returns 1 if one was not noticed."""
    breaks = [one for one in table() if not argv or argv[0] in one.file + one.old + one.new]
    missed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(COPIES) as pool:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(COPIES):
            trees.put(copied(Path(folder) / str(number)))
        for one, outcome in zip(
            breaks, pool.map(lambda one: tried(one, trees), breaks), strict=True
        ):
            missed += not outcome.is_noticed
            print(f"{outcome.what:12} {outcome.took_s:5.1f} s  {one.title}", flush=True)
    print(f"{len(breaks)} breaks, {missed} not noticed")
    return 1 if missed or not breaks else 0


def table() -> list[Break]:
    """All breaks."""
    groups = tomllib.loads(TABLE.read_text())["group"]
    return [
        Break(group["file"], old, new, tuple(group["tests"]), group.get("every_test", False))
        for group in groups
        for old, new in group["breaks"]
    ]


def copied(tree: Path) -> Path:
    """A copy of the tree, with the core that was built."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, tree / name)
    return tree


def tried(one: Break, trees: queue.SimpleQueue[Path]) -> Outcome:
    """Makes the break, runs its tests, mends it."""
    tree = trees.get()
    path = tree / one.file
    whole = path.read_text()
    begin = time.monotonic()
    try:
        if whole.count(one.old) != 1:
            return Outcome(f"{whole.count(one.old)} places", False, 0)
        path.write_text(whole.replace(one.old, one.new))
        what = run(tree, one)
    finally:
        path.write_text(whole)
        trees.put(tree)
    return Outcome(what, what == "noticed", time.monotonic() - begin)


def run(tree: Path, one: Break) -> str:
    """What the tests say."""
    marked = () if one.every_test else ("-m", "spec")
    options = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0")
    command = [sys.executable, "-m", "pytest", *options, *marked, *one.tests]
    # No byte code: a file that changes twice in a second would be taken for the same.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "noticed"
    return {_FAILED: "noticed", 0: "SURVIVED", _NONE_RAN: "NO TESTS"}.get(
        done.returncode, f"pytest {done.returncode}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
