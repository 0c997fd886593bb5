# SPDX-License-Identifier: Apache-2.0
"""Reads what tests need from the C files: enums, structs, definitions of functions."""

from __future__ import annotations

import re
from pathlib import Path

CORE = Path(__file__).parents[2] / "ztunnel_py" / "core"
BINDING = {"extension", "module", "convert"}
"""Files that know Python."""

_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_FUNCTION = re.compile(r"^(?!static\b|typedef\b|[#}/\s])[^\n;{}]*?\b(\w+)\([^;{}]*\)\s*\{", re.M)


def files(*suffixes: str) -> list[Path]:
    """Files of the core, but for the binding."""
    found = [path for path in sorted(CORE.iterdir()) if path.suffix in suffixes]
    return [path for path in found if path.stem not in BINDING]


def code(path: Path) -> str:
    """The file without its comments and what its strings say."""
    return _STRING.sub('""', _COMMENT.sub(" ", path.read_text()))


def exported(path: Path) -> list[str]:
    """Functions that a file defines for others."""
    return _FUNCTION.findall(code(path))


def structs(path: Path) -> set[str]:
    """Structs that a header declares or defines."""
    return set(re.findall(r"^struct (\w+)\s*[;{]", code(path), re.M))


def members(header: str, struct: str) -> list[str]:
    """Names of a struct's members, in their order."""
    body = _body(header, f"struct {struct}")
    return re.findall(r"(\w+)\s*[,;]", body)


def enumerators(header: str, enum: str) -> list[str]:
    """Names of an enum that counts up from 0, in their order, without the prefix of its kind."""
    return re.findall(r"(\w+)\s*(?:=[^,]*)?,?", _body(header, f"enum {enum}"))


def _body(header: str, what: str) -> str:
    match = re.search(rf"^{what} \{{(.*?)\}};", code(CORE / header), re.M | re.S)
    assert match, f"{header} has no {what}"
    return match[1]
