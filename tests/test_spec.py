# SPDX-License-Identifier: Apache-2.0
"""The tally of proved statements counts only what passed everywhere."""

from __future__ import annotations

import pytest

from tests.support.spec import is_statement, ranges, tally


def test_a_statement_counts_if_all_its_tests_passed() -> None:
    proved, missing = tally({"dataplane-3": {"a[reference]": "passed", "a[native]": "passed"}})

    assert proved == ["dataplane-3"]
    assert len(missing) == 409


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_one_engine_that_did_not_pass_takes_the_statement_away(outcome: str) -> None:
    proved, _ = tally({"dataplane-3": {"a[reference]": "passed", "a[native]": outcome}})

    assert proved == []


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("ops-116", True), ("ops-117", False), ("ops-0", False), ("op-1", False), ("redir", False)],
)
def test_only_names_of_the_checklists_are_statements(name: str, is_one: bool) -> None:
    assert is_statement(name) is is_one


def test_missing_numbers_are_shown_as_runs() -> None:
    assert ranges(["redir-1", "redir-2", "redir-3", "redir-7", "ops-9"], "redir") == "1-3, 7"
