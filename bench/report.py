# SPDX-License-Identifier: Apache-2.0
"""Turns what was measured into a table and a JSON file."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ztunnel_py.cli.topology import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.loads import Values
    from bench.measures import Measure, Row

DIRECT = "direct"
_TITLE_WIDTH, _UNIT_WIDTH, _CELL_WIDTH = 46, 9, 18


class Spread(NamedTuple):
    """The middle, smallest and largest of repeated values."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(value: float, baseline: float) -> str:
    """How many times the baseline, as shown; empty if that says nothing."""
    if baseline <= 0 or value < 0:
        return ""
    return f"x{value / baseline:.2f}"


def label(row: Row) -> str:
    """What a row is about, where its measure is named beside it."""
    words = {"rate": "rate", "cpu": "CPU of both proxies", "client": "client's proxy"}
    words |= {"server": "server's proxy", "p50_us": "p50", "p99_us": "p99", "kept": "last of first"}
    added = "added " if row.is_added else ""
    return f"{added}{words.get(row.key, row.key)}, {row.unit}".removesuffix(", ")


@dataclass(slots=True)
class Results:
    """The values of each repetition, and the failures, by measure and contestant."""

    values: dict[tuple[str, str], list[Values]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, measure: str, name: str, values: Values) -> None:
        """Notes one repetition."""
        self.values.setdefault((measure, name), []).append(values)

    def fail(self, measure: str, name: str, reason: str) -> None:
        """Notes that a measure failed; the first reason stays."""
        self.failures.setdefault((measure, name), reason)

    def spread(self, measure: str, name: str, row: Row) -> Spread | None:
        """The spread of one row; None if the contestant has no value or failed once."""
        if (measure, name) in self.failures:
            return None
        kept = [one[row.key] for one in self.values.get((measure, name), []) if row.key in one]
        if row.is_added and kept:
            return self._added(measure, name, row, kept)
        return spread(kept) if kept else None

    def _added(self, measure: str, name: str, row: Row, kept: Sequence[float]) -> Spread | None:
        direct = [one[row.key] for one in self.values.get((measure, DIRECT), [])]
        if name == DIRECT or not direct or (measure, DIRECT) in self.failures:
            return None
        return spread([value - statistics.median(direct) for value in kept])


def table(
    results: Results, measures: Sequence[Measure], names: Sequence[str], baseline: str
) -> Iterator[str]:
    """The lines of the table: medians with ratios, the spread below."""
    head = "".join(f"{name:>{_CELL_WIDTH}}" for name in names)
    yield f"{'':{_TITLE_WIDTH}}{'':{_UNIT_WIDTH}}{head}"
    for measure in measures:
        for row in measure.rows:
            yield from _lines(results, measure.name, row, names, baseline)
    for line in failures(results):
        yield f"FAILED {line}"


def failures(results: Results) -> Iterator[str]:
    """Who failed at what and why; what failed for the same reason is one line."""
    measures: dict[tuple[str, str], list[str]] = {}
    for (measure, name), reason in results.failures.items():
        measures.setdefault((name, reason), []).append(measure)
    for (name, reason), failed in measures.items():
        shown = reason.replace(f"{REPOSITORY}/", "")
        yield f"{', '.join(failed)} of {name}: {shown}"


def _lines(
    results: Results, measure: str, row: Row, names: Sequence[str], baseline: str
) -> Iterator[str]:
    base = results.spread(measure, baseline, row)
    upper, lower = "", ""
    for name in names:
        found = results.spread(measure, name, row)
        if found is None:
            mark = "failed" if (measure, name) in results.failures else "-"
            upper += f"{mark:>{_CELL_WIDTH}}"
            lower += " " * _CELL_WIDTH
            continue
        times = ratio(found.median, base.median) if base and name != baseline else ""
        upper += f"{found.median:>{_CELL_WIDTH - 8}.{row.digits}f} {times:<7}"
        lower += f"{_range(found, row.digits):>{_CELL_WIDTH}}"
    yield f"{row.title:{_TITLE_WIDTH}}{row.unit:{_UNIT_WIDTH}}{upper}".rstrip()
    if lower.strip():
        yield f"{'':{_TITLE_WIDTH + _UNIT_WIDTH}}{lower}".rstrip()


def _range(found: Spread, digits: int) -> str:
    if found.low == found.high:
        return ""
    return f"{found.low:.{digits}f}…{found.high:.{digits}f}"


def as_json(
    results: Results,
    measures: Sequence[Measure],
    names: Sequence[str],
    baseline: str,
    conditions: dict[str, str],
) -> dict[str, Any]:
    """Everything that was measured, in the order of the table."""
    rows = []
    for measure in measures:
        for row in measure.rows:
            base = results.spread(measure.name, baseline, row)
            found = {name: results.spread(measure.name, name, row) for name in names}
            rows.append(
                {
                    "measure": measure.name,
                    "value": row.key,
                    "title": row.title.strip(),
                    "unit": row.unit,
                    "contestants": {
                        name: {
                            **value._asdict(),
                            "ratio": value.median / base.median if base and base.median else None,
                        }
                        for name, value in found.items()
                        if value
                    },
                }
            )
    return {
        "conditions": conditions,
        "baseline": baseline,
        "rows": rows,
        "repetitions": [
            {"measure": measure, "contestant": name, "values": values}
            for (measure, name), values in results.values.items()
        ],
        "failures": [
            {"measure": measure, "contestant": name, "reason": reason}
            for (measure, name), reason in results.failures.items()
        ],
    }
