# SPDX-License-Identifier: Apache-2.0
"""Dashboard and alert rules ask for metrics and labels that are exposed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser as promql
import pytest
import yaml

from ztunnel_py.telemetry.catalogue import LABELS, METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
SAMPLES = {name: metric for metric in METRICS for name in metric.samples}
OF_PROMETHEUS = {"instance", "job"}
UNKNOWN_TO_PROMETHEUS = {"$__rate_interval": "5m", "$instance": "node"}
"""What Grafana puts in the place of its variables."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def _expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            text: str = target["expr"]
            for variable, value in UNKNOWN_TO_PROMETHEUS.items():
                text = text.replace(variable, value)
            yield text
    yield from (rule["expr"] for rule in rules())


EXPRESSIONS = list(_expressions())


def nodes(expression: str) -> list[Any]:
    """All parts of an expression; fails if it is malformed."""
    found: list[Any] = []
    promql.walk(promql.parse(expression), found.append)
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_what_there_is(expression: str) -> None:
    selectors = [node for node in nodes(expression) if isinstance(node, promql.VectorSelector)]

    assert selectors
    for selector in selectors:
        asked = {matcher.name for matcher in selector.matchers.matchers}
        known = {*SAMPLES[str(selector.name)].labels, *OF_PROMETHEUS}
        assert asked <= known, selector.name


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_groups_by_labels_that_there_are(expression: str) -> None:
    groups = [
        set(node.modifier.labels)
        for node in nodes(expression)
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None
    ]

    assert set().union(*groups) <= {*LABELS, *OF_PROMETHEUS}


def test_every_metric_is_shown() -> None:
    text = " ".join(EXPRESSIONS)

    missing = [metric.name for metric in METRICS if not any(s in text for s in metric.samples)]

    assert missing == []


def test_rules_say_what_is_wrong_and_how_bad_it_is() -> None:
    names = [rule["alert"] for rule in rules()]

    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical"), rule
        assert rule["annotations"]["summary"], rule


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()

    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
