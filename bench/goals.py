# SPDX-License-Identifier: Apache-2.0
"""What the native engine is to reach, as multiples of what others do in the same run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from bench.contestants import ON_DEBIAN_13
from bench.measures import MEASURES

if TYPE_CHECKING:
    from bench.measures import Measure, Row
    from bench.report import Results

YARDSTICK, LIMIT, DIRECT, ITSELF = "ztunnel", "relay", "direct", "its own"
NOISE = 0.95
"""Equal, in a single run."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one value of one measure."""

    measure: str
    value: str
    bound: float
    """With OpenSSL 3.0."""
    bound_35: float
    """With OpenSSL 3.5."""
    is_most: bool
    """An upper bound; else a lower one."""
    of: str = ""
    """Whose value the bound is a multiple of; empty if it is the value itself."""
    of_measure: str = ""
    """The measure of that other value, if it is not the same."""

    def than(self, of: str) -> Goal:
        """The same bound, as a multiple of another contestant's value."""
        return replace(self, of=of)

    def bound_for(self, name: str) -> float:
        """The bound that holds for one of our contestants."""
        return self.bound_35 if name == ON_DEBIAN_13 else self.bound

    def text(self, name: str, digits: int) -> str:
        """The bound for one of our contestants, as people write it."""
        sign = "≤" if self.is_most else "≥"
        bound = self.bound_for(name)
        of = f"{self.of} {self.of_measure}".strip()
        return f"{sign} x{bound:.2f} of {of}" if of else f"{sign} {bound:.{digits}f}"


class Judgement(NamedTuple):
    """How far one contestant is with one goal."""

    reached: float
    """The value, or the multiple of the other's."""
    is_met: bool


def at_least(measure: str, value: str, bound: float, bound_35: float | None = None) -> Goal:
    """A lower bound, on a multiple of the yardstick."""
    return Goal(measure, value, bound, bound_35 or bound, is_most=False, of=YARDSTICK)


def at_most(measure: str, value: str, bound: float, bound_35: float | None = None) -> Goal:
    """An upper bound, on a multiple of the yardstick."""
    return Goal(measure, value, bound, bound_35 or bound, is_most=True, of=YARDSTICK)


GOALS = (
    at_least("bulk-1", "rate", 1.35, 1.5),
    at_least("bulk-1", "rate", 0.78, 0.85).than(LIMIT),
    at_most("bulk-1", "cpu", 0.8, 0.68),
    at_least("bulk-64", "rate", 1.5, 1.7),
    at_most("bulk-64", "cpu", 0.7, 0.55),
    at_least("bulk-64-unpinned", "rate", 1.7, 2.0),
    at_most("bulk-64-unpinned", "cpu", 0.6, 0.5),
    replace(at_least("bulk-64-unpinned", "rate", 1.0), of=ITSELF, of_measure="bulk-1-unpinned"),
    at_least("connect", "rate", 1.9),
    at_most("connect", "cpu", 0.5),
    at_least("connect-unpinned", "rate", 2.2),
    at_most("connect-unpinned", "cpu", 0.4),
    at_most("pingpong-1", "p50_us", 0.95),
    at_most("pingpong-1", "cpu", 0.95),
    at_least("pingpong-64", "rate", 1.35),
    at_most("pingpong-64", "cpu", 0.6),
    at_most("http", "p50_us", 0.6),
    at_most("http", "p99_us", 0.6),
    at_most("http", "cpu", 0.6),
    at_most("handshake", "p50_us", 1.0),
    at_most("memory-idle", "client", 2.0).than(""),
    at_most("memory-idle", "server", 2.0).than(""),
    at_most("memory", "client", 60.0).than(""),
    at_most("memory", "server", 60.0).than(""),
    at_most("upcall", "p50_us", 200.0).than(""),
    at_least("short", "kept", NOISE).than(DIRECT),
)


def judge(goal: Goal, results: Results, name: str) -> Judgement | None:
    """How far a contestant is; None if it, or what it is compared with, has no value."""
    measure, row = find(goal.measure, goal.value)
    value = results.spread(measure.name, name, row)
    if value is None:
        return None
    reached = value.median
    if goal.of:
        other_measure = find(goal.of_measure or goal.measure, goal.value)[0].name
        other = results.spread(other_measure, name if goal.of == ITSELF else goal.of, row)
        if other is None or other.median <= 0:
            return None
        reached /= other.median
    bound = goal.bound_for(name)
    return Judgement(reached, reached <= bound if goal.is_most else reached >= bound)


def find(measure: str, value: str) -> tuple[Measure, Row]:
    """A measure and one of its rows, by their names."""
    found = next(one for one in MEASURES if one.name == measure)
    return found, next(row for row in found.rows if row.key == value)
