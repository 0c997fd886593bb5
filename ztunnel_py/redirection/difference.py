# SPDX-License-Identifier: Apache-2.0
"""How two lists of rules differ: what is missing, what has no place there, what changed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Difference:
    """One line for an operator."""

    where: str
    """The list: `ipv4 nat ISTIO_OUTPUT`."""
    expected: str
    """Empty if nothing belongs there."""
    found: str
    """Empty if nothing is there."""

    def __str__(self) -> str:
        """`missing`, `extra` or `changed`, where, and what."""
        if not self.found:
            return f"missing in {self.where}: {self.expected}"
        if not self.expected:
            return f"extra in {self.where}: {self.found}"
        return f"changed in {self.where}: {self.found}, expected {self.expected}"


def compare(
    where: str,
    expected: Sequence[str],
    found: Sequence[str],
    meaning: Callable[[str], object] = str,
) -> Iterator[Difference]:
    """The differences of two lists whose order counts; `meaning` is equal for equal rules."""
    matcher = difflib.SequenceMatcher(
        None,
        [meaning(rule) for rule in expected],
        [meaning(rule) for rule in found],
        autojunk=False,
    )
    for what, i, i_end, j, j_end in matcher.get_opcodes():
        if what == "equal":
            continue
        paired = min(i_end - i, j_end - j)
        for k in range(paired):
            yield Difference(where, expected[i + k], found[j + k])
        for rule in expected[i + paired : i_end]:
            yield Difference(where, rule, "")
        for rule in found[j + paired : j_end]:
            yield Difference(where, "", rule)
