# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin behind `--record-spec`: outcomes of tests by checklist statement."""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.spec import is_statement

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROPERTY = "spec"
_ENGINE = "engine"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--record-spec PATH`."""
    parser.addoption("--record-spec", metavar="PATH", help="write proved statements to PATH")


def pytest_configure(config: pytest.Config) -> None:
    """Records in the process that sees all reports."""
    if config.getoption("--record-spec") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recording(Path(config.getoption("--record-spec"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Attaches each test's statements and engine to its report; a wrong name is an error."""
    for item in items:
        for mark in item.iter_markers("spec"):
            for name in mark.args:
                if not is_statement(name):
                    raise pytest.UsageError(f"{item.nodeid}: no such statement: {name!r}")
                item.user_properties.append((_PROPERTY, name))
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "engine_name" in callspec.params:
            item.user_properties.append((_ENGINE, callspec.params["engine_name"]))


class Recording:
    """Collects outcomes and writes them when the session ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._ran_on: dict[str, str] = {}
        self._tests: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst phase of a test is its outcome."""
        self._tests.add(report.nodeid)
        for name, value in report.user_properties:
            if name == _ENGINE:
                self._ran_on[report.nodeid] = str(value)
            elif name == _PROPERTY:
                known = self._outcomes[str(value)]
                if report.outcome != "passed" or report.nodeid not in known:
                    known[report.nodeid] = report.outcome

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        """Writes the record."""
        yield
        self._path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "tests": len(self._tests),
            "engines": sorted(set(self._ran_on.values())),
            "outcomes": self._outcomes,
            "ran_on": {
                test: self._ran_on[test]
                for tests in self._outcomes.values()
                for test in tests
                if test in self._ran_on
            },
        }
        self._path.write_text(json.dumps(record, indent=1, sort_keys=True))
