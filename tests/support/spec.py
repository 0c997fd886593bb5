# SPDX-License-Identifier: Apache-2.0
"""Which checklist statements the last recorded test run proved.

    python -m tests.support.spec build/spec.json

A statement counts if every test that carries its mark ran and passed: on each engine, since such
tests run once per engine. The run is recorded by `--record-spec` (tests/support/recording.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SIZES = {"dataplane": 114, "state": 120, "ops": 116, "redir": 60}
"""Statements per checklist."""

PASSED = "passed"


def is_statement(name: str) -> bool:
    """`dataplane-17` and the like, within the checklist."""
    checklist, _, number = name.rpartition("-")
    return number.isdecimal() and 1 <= int(number) <= SIZES.get(checklist, 0)


def tally(outcomes: dict[str, dict[str, str]]) -> tuple[list[str], list[str]]:
    """Proved and missing statements, from the outcomes of tests by statement."""
    proved: list[str] = []
    missing: list[str] = []
    for checklist, size in SIZES.items():
        for number in range(1, size + 1):
            name = f"{checklist}-{number}"
            tests = outcomes.get(name, {})
            is_proved = bool(tests) and all(outcome == PASSED for outcome in tests.values())
            (proved if is_proved else missing).append(name)
    return proved, missing


def by_engine(
    proved: list[str], outcomes: dict[str, dict[str, str]], ran_on: dict[str, str]
) -> dict[str, list[str]]:
    """Of the proved statements, those that tests on each engine prove."""
    found: dict[str, list[str]] = {engine: [] for engine in sorted(set(ran_on.values()))}
    for name in proved:
        for engine in {ran_on[test] for test in outcomes[name] if test in ran_on}:
            found[engine].append(name)
    return found


def ranges(names: list[str], checklist: str) -> str:
    """The numbers of one checklist, runs joined: `3-11, 13`."""
    numbers = [int(name.rpartition("-")[2]) for name in names if name.startswith(f"{checklist}-")]
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def main(path: str) -> int:
    """Prints the tally of a recorded run."""
    run = json.loads(Path(path).read_text())
    outcomes: dict[str, dict[str, str]] = run["outcomes"]
    proved, missing = tally(outcomes)
    print(f"recorded {run['when']}, {run['tests']} tests, engines: {', '.join(run['engines'])}")
    for name, tests in sorted(outcomes.items()):
        for test, outcome in tests.items():
            if outcome != PASSED:
                print(f"  {name}: {test} {outcome}")
    for checklist in SIZES:
        print(f"missing {checklist}: {ranges(missing, checklist) or 'none'}")
    for engine, names in by_engine(proved, outcomes, run["ran_on"]).items():
        shown = (f"{one} {ranges(names, one)}" for one in SIZES if ranges(names, one))
        print(f"on {engine}: {len(names)} ({'; '.join(shown)})")
    print(f"{len(proved)} of {sum(SIZES.values())} statements")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
