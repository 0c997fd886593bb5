# SPDX-License-Identifier: Apache-2.0
"""What has come from the control plane, counted: spec state, section 1.9."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of one session; they only grow."""

    terminations: dict[str, int] = field(default_factory=dict)
    """Streams that have ended, or could not be opened, by reason."""
    messages: dict[str, int] = field(default_factory=dict)
    """Responses by type."""
    message_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of their resources' payloads by type."""


def add(counts: dict[str, int], key: str, by: int = 1) -> None:
    """Moves one counter."""
    counts[key] = counts.get(key, 0) + by
