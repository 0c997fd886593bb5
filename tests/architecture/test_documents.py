# SPDX-License-Identifier: Apache-2.0
"""Pages for people: what they point at is there, and copied figures are those of their source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "bench/README.md"])

_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_PATH = re.compile(r"`((?:tests|bench|docs|deploy|ztunnel_py)/[\w./-]+)`")
_COMMIT = re.compile(r"commit (?:\| )?([0-9a-f]{7})\b")
_CONTESTANTS = slice(4, 8)
"""Columns of docs/performance.md: envoy, ztunnel, native, native-3.5."""


def rows(page: Path) -> list[list[str]]:
    """The cells of all tables, medians without their spread."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [
        [cell.partition(" (")[0].strip() for cell in line.strip("|").split("|")] for line in lines
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_at_is_there(page: Path) -> None:
    text = page.read_text()
    linked = [page.parent / path for path in _LINK.findall(text)]
    named = [ROOT / path for path in _PATH.findall(text)]

    assert [str(path) for path in [*linked, *named] if not path.exists()] == []


def test_compared_figures_are_those_of_the_run_that_is_named() -> None:
    source, page = DOCS / "performance.md", DOCS / "comparison.md"
    measured = {tuple(row[_CONTESTANTS]) for row in rows(source) if len(row) > _CONTESTANTS.stop}
    compared = [tuple(row[2:6]) for row in rows(page) if len(row) == 7 and row[1] != "unit"]

    assert compared
    assert [row for row in compared if row not in measured] == []
    assert _COMMIT.findall(page.read_text())[0] == _COMMIT.findall(source.read_text())[0]
