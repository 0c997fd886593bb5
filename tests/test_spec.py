# SPDX-License-Identifier: Apache-2.0
"""The tally of proved statements counts only what passed everywhere."""

from __future__ import annotations

import pytest

from tests.support.spec import by_engine, is_statement, ranges, tally


def test_a_statement_counts_if_all_its_tests_passed() -> None:
    proved, missing = tally({"dataplane-3": {"a[reference]": "passed", "a[native]": "passed"}})

    assert proved == ["dataplane-3"]
    assert len(missing) == 409


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_one_engine_that_did_not_pass_takes_the_statement_away(outcome: str) -> None:
    proved, _ = tally({"dataplane-3": {"a[reference]": "passed", "a[native]": outcome}})

    assert proved == []


def test_statements_are_shown_under_each_engine_whose_tests_prove_them() -> None:
    outcomes = {
        "dataplane-3": {"a[native]": "passed", "a[reference]": "passed"},
        "ops-34": {"b[native]": "passed"},
        "state-1": {"c": "passed"},
    }
    ran_on = {"a[native]": "native", "a[reference]": "reference", "b[native]": "native"}

    assert by_engine(list(outcomes), outcomes, ran_on) == {
        "native": ["dataplane-3", "ops-34"],
        "reference": ["dataplane-3"],
    }


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("ops-116", True), ("ops-117", False), ("ops-0", False), ("op-1", False), ("redir", False)],
)
def test_only_names_of_the_checklists_are_statements(name: str, is_one: bool) -> None:
    assert is_statement(name) is is_one


def test_missing_numbers_are_shown_as_runs() -> None:
    assert ranges(["redir-1", "redir-2", "redir-3", "redir-7", "ops-9"], "redir") == "1-3, 7"
