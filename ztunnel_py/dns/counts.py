# SPDX-License-Identifier: Apache-2.0
"""What is counted of queries, for all clients of one process.

Source: spec state, section 7.9; ztunnel src/dns/metrics.rs.
"""

from __future__ import annotations

import bisect
from collections import Counter
from typing import NamedTuple

BUCKETS_S = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
"""Upper bounds of the durations that are counted together; longer ones come last."""


class Labels(NamedTuple):
    """What a query is counted under; empty values are unknown."""

    request_query_type: str
    request_protocol: str
    source_canonical_service: str = ""
    source_canonical_revision: str = ""


class Durations:
    """How long queries took."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        """One for each of `BUCKETS_S`, and what took longer."""
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Counts:
    """Queries by labels."""

    def __init__(self) -> None:
        self.requests = Counter[Labels]()
        """All that could be read."""
        self.forwarded = Counter[Labels]()
        self.failed = Counter[Labels]()
        """Forwarded in vain; that there is no such name or record is one way to fail."""
        self.durations: dict[Labels, Durations] = {}
        """Of those that were forwarded."""

    def took(self, labels: Labels, seconds: float) -> None:
        """A query that was forwarded is over."""
        self.durations.setdefault(labels, Durations()).add(seconds)
