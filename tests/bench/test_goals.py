# SPDX-License-Identifier: Apache-2.0
"""The goals, how they are judged, and the page that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import contestants, goals, performance
from bench.goals import GOALS, at_least, at_most
from bench.measures import MEASURES
from bench.report import Results

if TYPE_CHECKING:
    from bench.goals import Goal

NATIVE, NEWER = contestants.OUR_ENGINES[0], contestants.ON_DEBIAN_13


def measured(**rates: float) -> Results:
    """Results of bulk-1, by contestant."""
    results = Results()
    for name, rate in rates.items():
        results.add("bulk-1", name.replace("newer", NEWER), {"rate": rate, "cpu": 1 / rate})
    return results


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.measure} {goal.value} {goal.of}")
def test_goal_names_a_value_that_is_measured(goal: Goal) -> None:
    measure, row = goals.find(goal.of_measure or goal.measure, goal.value)

    assert measure in MEASURES
    assert row in measure.rows


@pytest.mark.parametrize(("rate", "is_met"), [(13.4, False), (13.5, True)])
def test_lower_bound_is_a_multiple_of_the_other(rate: float, is_met: bool) -> None:
    found = goals.judge(at_least("bulk-1", "rate", 1.35), measured(ztunnel=10, native=rate), NATIVE)

    assert found is not None
    assert found.reached == pytest.approx(rate / 10)
    assert found.is_met is is_met


def test_upper_bound_without_another_is_the_value_itself() -> None:
    results = measured(native=2)

    found = goals.judge(at_most("bulk-1", "cpu", 0.4).than(""), results, NATIVE)

    assert found == (0.5, False)


def test_newer_openssl_has_bounds_of_its_own() -> None:
    goal = at_least("bulk-1", "rate", 1.35, 1.5)
    results = measured(ztunnel=10, native=14, newer=14)

    met = [found.is_met for name in (NATIVE, NEWER) if (found := goals.judge(goal, results, name))]

    assert met == [True, False]


def test_goal_compared_with_nobody_is_not_judged() -> None:
    assert goals.judge(at_least("bulk-1", "rate", 1.35), measured(native=14), NATIVE) is None


def page(results: Results, *names: str) -> str:
    return performance.markdown(results, MEASURES, names, {"commit": "c"}, "make bench")


def test_page_has_missed_goals_in_bold_and_reached_ones_not() -> None:
    text = page(measured(relay=10, ztunnel=10, native=14), "relay", "ztunnel", "native")

    lines = text.splitlines()
    assert "| bulk-1 | rate, Gb/s | ≥ x1.35 of ztunnel | x1.40 |" in lines
    assert "| bulk-1 | CPU of both proxies, s/GB | ≤ x0.80 of ztunnel | x0.71 |" in lines
    assert "| bulk-1 | rate, Gb/s | ≥ x0.78 of relay | x1.40 |" in lines
    assert page(measured(ztunnel=10, native=13), "ztunnel", "native").count("**x1.30**") == 1


def test_page_without_the_yardstick_shows_envoy_and_judges_nothing_by_it() -> None:
    text = page(measured(envoy=10, native=5), "envoy", "native")

    assert "| bulk-1 | rate, Gb/s |  | x0.50 envoy |" in text.splitlines()
    assert "**" not in text


def test_page_shows_spread_and_distance_to_the_limit() -> None:
    results = measured(relay=10, ztunnel=10, native=5)
    results.add("bulk-1", NATIVE, {"rate": 7.0})

    text = page(results, "relay", "ztunnel", "native")

    assert "| 10.00 | 10.00 | 6.00 (5.00…7.00) | 0.60 | 0.60 |" in text


def test_page_says_once_why_a_contestant_failed() -> None:
    results = measured(relay=10)
    for measure in ("bulk-1", "bulk-64"):
        results.fail(measure, NATIVE, "did not start")

    assert "* bulk-1, bulk-64 of native: did not start" in page(results, "relay", "native")
