# SPDX-License-Identifier: Apache-2.0
"""Traffic counters of one label set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.errors import Flag


@dataclass(slots=True)
class SlotCounts:
    """What happened under one label set; only ever grows.

    `received` is client to upstream, `sent` upstream to client, whatever the reporter (spec
    dataplane, section 8.4).
    """

    opened: int = 0
    received: int = 0
    sent: int = 0
    closed: dict[Flag, int] = field(default_factory=dict)

    def count_closed(self, flag: Flag) -> None:
        """One connection ended with `flag`."""
        self.closed[flag] = self.closed.get(flag, 0) + 1
