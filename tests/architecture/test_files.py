# SPDX-License-Identifier: Apache-2.0
"""What every file of the project begins with, and how long it may be."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from ztunnel_py import config_doc
from ztunnel_py.telemetry import metrics_doc

ROOT = Path(__file__).parents[2]
SPDX = "SPDX-License-Identifier: Apache-2.0"
LONGEST = 600
CODE = {".py", ".c", ".h", ".sh", ".mk"}


def tracked() -> list[Path]:
    """Files of the project that are there, known to git or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file()]


def python_files() -> list[Path]:
    """Modules with something in them."""
    return [path for path in tracked() if path.suffix == ".py" and path.read_text().strip()]


def test_code_names_its_licence() -> None:
    without = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in CODE
        and path.read_text().strip()
        and SPDX not in "".join(path.read_text().splitlines(keepends=True)[:3])
    ]

    assert not without


def test_modules_say_their_purpose_in_one_line() -> None:
    def purpose(path: Path) -> str:
        return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]

    without = [str(p.relative_to(ROOT)) for p in python_files() if not purpose(p)]

    assert not without


def test_packages_say_their_purpose_in_few_words() -> None:
    packages = sorted((ROOT / "ztunnel_py").rglob("__init__.py"))

    wordy = {
        str(path.relative_to(ROOT)): words
        for path in packages
        if not 1
        <= len(words := (ast.get_docstring(ast.parse(path.read_text())) or "").split())
        <= 7
    }

    assert not wordy


def test_no_file_holds_two_nouns() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked()
        if path.suffix in CODE and (lines := path.read_text().count("\n")) > LONGEST
    }

    assert not long


def test_every_setting_is_documented() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == config_doc.markdown()


def test_every_metric_is_documented() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_doc.markdown()


@pytest.mark.parametrize("word", ["peer", "helper", "util", "common", "handler"])
def test_relative_nouns_name_no_module(word: str) -> None:
    named = [p.name for p in (ROOT / "ztunnel_py").rglob("*.py") if word in p.stem.split("_")]

    assert not named
