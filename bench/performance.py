# SPDX-License-Identifier: Apache-2.0
"""Writes docs/performance.md: goals, figures, and how they came about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import contestants, goals
from bench.goals import GOALS, LIMIT, YARDSTICK
from bench.report import failures, label

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.goals import Goal
    from bench.measures import Measure, Row
    from bench.report import Results, Spread

_SUBSTITUTE = "envoy"
_JUDGED = (contestants.OUR_ENGINES[0], contestants.ON_DEBIAN_13)


def markdown(
    results: Results,
    measures: Sequence[Measure],
    names: Sequence[str],
    conditions: Mapping[str, str],
    command: str,
) -> str:
    """The whole page."""
    return "\n".join(
        [
            "# Performance",
            "",
            "Written by `make bench`; what is measured and how is said in",
            "[bench/README.md](../bench/README.md). Medians, the smallest and the largest value in",
            "brackets. Compare within a page, not between pages.",
            "",
            f"    {command}",
            "",
            *_table(["what", "value"], [[key, value] for key, value in conditions.items()]),
            "",
            "## Goals",
            "",
            *_goals(results, names),
            "",
            "## Figures",
            "",
            *_figures(results, measures, names),
            *_failures(results),
            "",
        ]
    )


def _goals(results: Results, names: Sequence[str]) -> Iterator[str]:
    ours = [name for name in names if name in _JUDGED]
    has_yardstick = YARDSTICK in names
    yield "Missed ones in bold."
    if not has_yardstick:
        yield f"{YARDSTICK} took no part (`--peer {YARDSTICK}=PATH`): multiples of its values are"
        yield f"not judged, and those of {_SUBSTITUTE} shown instead."
    yield ""
    head = [*["measure", "value"], *(text for name in ours for text in (f"goal of {name}", name))]
    yield from _table(head, [_goal(one, results, ours, has_yardstick) for one in GOALS])


def _goal(goal: Goal, results: Results, ours: Sequence[str], has_yardstick: bool) -> list[str]:
    measure, row = goals.find(goal.measure, goal.value)
    cells = [measure.name, label(row)]
    is_known = has_yardstick or goal.of != YARDSTICK
    shown = goal if is_known else goal.than(_SUBSTITUTE)
    for name in ours:
        found = goals.judge(shown, results, name)
        cells.append(goal.text(name, row.digits) if is_known else "")
        if found is None:
            cells.append("-")
            continue
        text = f"x{found.reached:.2f}" if goal.of else f"{found.reached:.{row.digits}f}"
        text += "" if is_known else f" {_SUBSTITUTE}"
        cells.append(f"**{text}**" if is_known and not found.is_met else text)
    return cells


def _figures(results: Results, measures: Sequence[Measure], names: Sequence[str]) -> Iterator[str]:
    ours = [name for name in names if name in _JUDGED]
    base = YARDSTICK if YARDSTICK in names else _SUBSTITUTE
    against = [(name, other) for name in ours for other in (base, LIMIT) if other in names]
    yield f"`{LIMIT}`: two bare relays without TLS, the limit."
    yield ""
    head = ["measure", "unit", *names, *(f"{name} : {other}" for name, other in against)]
    lines = []
    for measure in measures:
        for row in measure.rows:
            found = {name: results.spread(measure.name, name, row) for name in names}
            if not any(found.values()):
                continue
            ratios = [_ratio(found[name], found[other]) for name, other in against]
            cells = [_cell(found[name], row) for name in names]
            lines.append([row.title.replace("  ", "… "), row.unit, *cells, *ratios])
    yield from _table(head, lines)


def _cell(found: Spread | None, row: Row) -> str:
    if found is None:
        return "-"
    text = f"{found.median:.{row.digits}f}"
    if found.low == found.high:
        return text
    return f"{text} ({found.low:.{row.digits}f}…{found.high:.{row.digits}f})"


def _ratio(found: Spread | None, base: Spread | None) -> str:
    if found is None or base is None or base.median <= 0:
        return "-"
    return f"{found.median / base.median:.2f}"


def _failures(results: Results) -> Iterator[str]:
    if not results.failures:
        return
    yield from ("", "## Failed", "")
    for line in failures(results):
        yield f"* {line}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *lines):
        yield f"| {' | '.join(cells)} |"
