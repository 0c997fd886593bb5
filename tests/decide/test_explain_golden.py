# SPDX-License-Identifier: Apache-2.0
"""Small meshes, what happens to a connection in each, and whether the advice helps.

One file of `golden/` is one mesh and one connection. `obstacles` are the steps that stand in its
way, each with what was found bad; of a connection that is let through all `steps` are there.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.decide.verdicts import is_encrypted_and_allowed
from tests.support.tree import edited, loaded
from ztunnel_py import yaml_tree
from ztunnel_py.decide.explain import explain
from ztunnel_py.decide.journey import Outcome
from ztunnel_py.decide.near_miss import FIELDS
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.standing import Bar
from ztunnel_py.decide.step import Mark
from ztunnel_py.state.policy import StringMatchKind

if TYPE_CHECKING:
    from ztunnel_py.decide.explain import Explanation

GOLDEN = Path(__file__).parent / "golden"


class Case(NamedTuple):
    """One file."""

    name: str
    src: str
    dst: str
    outcome: str
    reason: str
    lines: list[str]
    """Obstacles, or all steps."""
    fix: str
    is_fixable: bool
    mesh: Any

    @property
    def explanation(self) -> Explanation:
        return explain(loaded(self.mesh), Settings(), self.src, self.dst)

    @property
    def is_allowed(self) -> bool:
        return self.outcome == Outcome.ENCRYPTED.value


def _read(path: Path) -> Case:
    tree: Any = yaml_tree.parse(path.read_text(encoding="utf-8"))
    return Case(
        path.stem,
        tree["src"],
        tree["dst"],
        tree["outcome"],
        tree.get("reason", ""),
        tree["steps"] if "steps" in tree else tree["obstacles"],
        tree.get("fix", ""),
        tree.get("is_fixable", True),
        tree["mesh"],
    )


CASES = [_read(path) for path in sorted(GOLDEN.glob("*.yaml"))]
ADVISED = [case for case in CASES if case.is_fixable and not case.is_allowed]
UNADVISED = [case for case in CASES if not case.is_fixable]


def shown(explanation: Explanation) -> list[str]:
    """Obstacles with what was bad; where there is none, all steps with all findings."""
    lines = []
    for step in explanation.steps:
        if explanation.obstacle is not None and not step.is_obstacle:
            continue
        lines.append(f"{step.title}: {step.text}")
        for mark, text in step.findings:
            if explanation.obstacle is None:
                lines.append(f"  {mark.value}: {text}")
            elif mark is Mark.BAD:
                lines.append(f"  {text}")
    return lines


def test_there_are_cases_of_all_sorts() -> None:
    text = "\n".join(itertools.chain.from_iterable((*case.lines, str(case.mesh)) for case in CASES))
    keys = [key for field in FIELDS for key in (field.key, field.not_key)]
    words = [*keys, *(kind.value for kind in StringMatchKind), *(bar.value for bar in Bar)]

    missing = [word for word in words if word not in text]

    assert not missing
    assert {case.outcome for case in CASES} == {outcome.value for outcome in Outcome}
    assert len(ADVISED) > 50


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_connection_ends_as_it_should_and_what_stands_in_its_way_is_named(case: Case) -> None:
    explanation = case.explanation

    assert explanation.outcome.value == case.outcome
    assert explanation.reason == case.reason
    assert shown(explanation) == case.lines
    assert explanation.fix == case.fix


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_real_decisions_say_the_same(case: Case) -> None:
    is_allowed = is_encrypted_and_allowed(loaded(case.mesh), case.src, case.dst)

    assert is_allowed is case.is_allowed


@pytest.mark.parametrize("case", ADVISED, ids=[case.name for case in ADVISED])
def test_file_with_the_advised_changes_lets_the_connection_through(case: Case) -> None:
    changes: Any = case.explanation.tree()["changes"]
    edits = [edit for change in changes for edit in change["edits"]]

    after = loaded(edited(case.mesh, edits))

    assert is_encrypted_and_allowed(after, case.src, case.dst)
    assert explain(after, Settings(), case.src, case.dst).outcome is Outcome.ENCRYPTED


@pytest.mark.parametrize(
    "case",
    [case for case in ADVISED if "; " in case.fix],
    ids=[case.name for case in ADVISED if "; " in case.fix],
)
def test_none_of_several_changes_is_superfluous(case: Case) -> None:
    changes: Any = case.explanation.tree()["changes"]

    fewer = [
        [edit for change in some for edit in change["edits"]]
        for some in itertools.combinations(changes, len(changes) - 1)
        if _is_applicable(case.mesh, some)
    ]

    assert fewer
    assert not any(
        is_encrypted_and_allowed(loaded(edited(case.mesh, edits)), case.src, case.dst)
        for edits in fewer
    )


def _is_applicable(mesh: Any, changes: tuple[Any, ...]) -> bool:
    """A later change may need an earlier one."""
    try:
        edited(mesh, [edit for change in changes for edit in change["edits"]])
    except (KeyError, IndexError, ValueError):
        return False
    return True


@pytest.mark.parametrize("case", UNADVISED, ids=[case.name for case in UNADVISED])
def test_where_nothing_helps_it_is_said(case: Case) -> None:
    tree = case.explanation.tree()

    assert tree["changes"] is None
    assert tree["fix"]
