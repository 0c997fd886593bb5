# SPDX-License-Identifier: Apache-2.0
"""What the comparison is asked to do, on its command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bench import contestants
from bench.measures import MEASURES
from ztunnel_py.cli.topology import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.contestants import Contestant
    from bench.measures import Measure

QUICK = (1.5, 3)
FULL = (3.0, 5)
PAGE = REPOSITORY / "docs" / "performance.md"


class Options(argparse.Namespace):
    """The options, each with its type."""

    quick: bool
    peer: list[str]
    only: str | None
    measures: str | None
    baseline: str
    seconds: float
    repetitions: int
    debian13: bool
    logs: Path | None
    json: Path | None
    report: Path | None
    command: str
    """How to do the same again."""


def parse(argv: Sequence[str] | None) -> Options:
    """The options; those that depend on others are filled in."""
    names = [measure.name for measure in MEASURES]
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, epilog=f"measures: {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="few measures, 3 times 1.5 s")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also compare a program that takes ztunnel's environment",
    )
    parser.add_argument("--only", metavar="NAME,..", help="only these contestants")
    parser.add_argument("--measures", metavar="NAME,..", help="only these measures")
    parser.add_argument("--baseline", help="what ratios refer to (ztunnel, else envoy)")
    parser.add_argument("--seconds", type=float, help="of each measure")
    parser.add_argument("--repetitions", type=int, help="of each measure")
    parser.add_argument(
        "--debian13",
        action="store_true",
        help=f"also {contestants.ON_DEBIAN_13}: ours in a Debian 13 root with its OpenSSL; "
        "made by debootstrap in build/, which takes root and minutes",
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep logs and settings there")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all values there")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="PATH",
        help=f"write a page there ({PAGE.relative_to(REPOSITORY)} if everything is measured)",
    )
    options = parser.parse_args(argv, Options())
    seconds, repetitions = QUICK if options.quick else FULL
    options.seconds = options.seconds or seconds
    options.repetitions = options.repetitions or repetitions
    if not (options.report or options.quick or options.only or options.measures):
        options.report = PAGE
    peers = [text.partition("=")[0] for text in options.peer]
    options.baseline = options.baseline or next(iter(peers), "envoy")
    options.command = command(options)
    return options


def command(options: Options) -> str:
    """How to do the same again; paths are everybody's own business."""
    words = [
        *(["--quick"] if options.quick else []),
        *(["--debian13"] if options.debian13 else []),
        *(f"--peer {text.partition('=')[0]}=PATH" for text in options.peer),
        *([f"--only {options.only}"] if options.only else []),
        *([f"--measures {options.measures}"] if options.measures else []),
        f"--seconds {options.seconds:g} --repetitions {options.repetitions}",
    ]
    return f'make bench ARGS="{" ".join(words)}"'


def contestants_of(options: Options) -> list[Contestant]:
    """The contestants asked for, in the order of the table."""
    known: list[Contestant] = [contestants.Direct(), contestants.Relays(), contestants.Envoys()]
    ours = {*contestants.OUR_ENGINES, contestants.ON_DEBIAN_13}
    for text in options.peer:
        name, _, path = text.partition("=")
        if not os.access(path, os.X_OK):
            raise SystemExit(f"--peer {text}: no program at {path!r}; write NAME=PATH")
        if not name.isalnum() or name in ours | {one.name for one in known}:
            raise SystemExit(f"--peer {text}: {name!r} is taken or not made of letters and digits")
        known.append(contestants.foreign(name, Path(path).resolve()))
    known += [contestants.ours(engine) for engine in contestants.OUR_ENGINES]
    if options.debian13:
        known.append(contestants.ours_on_debian_13())
    names = [one.name for one in known]
    if options.only is None:
        return [one for one in known if one.name not in contestants.BY_NAME_ONLY]
    wanted = select(options.only, names, "--only")
    return [one for one in known if one.name in wanted]


def measures_of(options: Options) -> list[Measure]:
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
