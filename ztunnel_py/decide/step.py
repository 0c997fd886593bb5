# SPDX-License-Identifier: Apache-2.0
"""A step of an explanation: what was looked at, and what was found."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Mark(enum.Enum):
    """What a finding means for the connection."""

    GOOD = "good"
    BAD = "bad"
    NOTE = "note"
    """Neither: it was passed over."""


class Finding(NamedTuple):
    """One of the things that a step looked at."""

    mark: Mark
    text: str


class Step(NamedTuple):
    """One question, and its answer."""

    title: str
    """What was looked at, in a word."""
    text: str
    """What was found, in a line."""
    is_obstacle: bool = False
    """It keeps the connection from being encrypted and allowed."""
    findings: tuple[Finding, ...] = ()

    def tree(self, number: int) -> dict[str, object]:
        """As plain values."""
        return {
            "number": number,
            "title": self.title,
            "text": self.text,
            "isObstacle": self.is_obstacle,
            "findings": [{"mark": one.mark.value, "text": one.text} for one in self.findings],
        }


def finding(is_good: bool, text: str) -> Finding:
    """Something that lets the connection on, or does not."""
    return Finding(Mark.GOOD if is_good else Mark.BAD, text)
