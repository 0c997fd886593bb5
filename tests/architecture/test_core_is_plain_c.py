# SPDX-License-Identifier: Apache-2.0
"""The core knows no Python, prints nothing, ends no process, and names say where things are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.architecture import c_source

if TYPE_CHECKING:
    from pathlib import Path

BANNED = re.compile(r"\b(v?f?printf|puts|perror|exit|_exit|system|gets|strcpy|strcat|sprintf)\s*\(")
SIDE_EFFECT = re.compile(r"\+\+|--|(?<![=!<>])=(?!=)")
ASSERTION = re.compile(r"\bassert\s*\(([^;]*)\)\s*;")


def stem(path: Path) -> str:
    """For test ids."""
    return path.name


@pytest.mark.parametrize("path", c_source.files(".c", ".h"), ids=stem)
def test_only_the_binding_knows_python(path: Path) -> None:
    assert not re.search(r"Python\.h|\bPy[A-Z_]\w*", path.read_text())


def test_the_binding_includes_only_the_public_face_of_the_core() -> None:
    included = {
        header
        for name in c_source.BINDING
        for path in (c_source.CORE / f"{name}.c", c_source.CORE / f"{name}.h")
        if path.exists()
        for header in re.findall(r'#include "(\w+\.h)"', path.read_text())
    }

    assert included == {"convert.h", "core.h", "module.h"}


@pytest.mark.parametrize("path", c_source.files(".c", ".h"), ids=stem)
def test_the_core_prints_nothing_and_ends_no_process(path: Path) -> None:
    assert not BANNED.findall(c_source.code(path))


@pytest.mark.parametrize("path", c_source.files(".c", ".h"), ids=stem)
def test_nothing_depends_on_an_assertion(path: Path) -> None:
    assertions = ASSERTION.findall(c_source.code(path))

    assert not [text for text in assertions if SIDE_EFFECT.search(text)]


@pytest.mark.parametrize("path", c_source.files(".c"), ids=stem)
def test_a_function_is_named_after_its_file_or_what_its_header_declares(path: Path) -> None:
    header = path.with_suffix(".h")
    nouns = {path.stem, path.stem.partition("_")[0]}
    if header.exists():
        nouns |= c_source.structs(header)

    strangers = [
        name
        for name in c_source.exported(path)
        if not any(name == noun or name.startswith(f"{noun}_") for noun in nouns)
    ]

    assert not strangers


@pytest.mark.parametrize("path", c_source.files(".h"), ids=stem)
def test_a_header_says_its_purpose(path: Path) -> None:
    _, purpose, *_ = path.read_text().splitlines()

    assert purpose.startswith("/* ")
