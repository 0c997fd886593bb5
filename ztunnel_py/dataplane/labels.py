# SPDX-License-Identifier: Apache-2.0
"""Counters by index: which label set an index of the core's counters stands for.

There are as many indexes as the core has; once they are used up, further label sets share one per
reporter that says nothing else, so that traffic is still counted and memory is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.dataplane.counters import SlotCounts
from ztunnel_py.dataplane.packing import FLAGS
from ztunnel_py.decide.verdict import TrafficLabels
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHARED = TrafficLabels("source"), TrafficLabels("destination")
"""Label sets of whatever comes too late; they are always there."""
_OPENED, _RECEIVED, _SENT, _CLOSED = 0, 1, 2, 3
COLUMNS = _CLOSED + len(FLAGS)
"""Numbers of one index, 64 bits each."""

log = logger("ztunnel::metrics")


class Slots:
    """Label sets in the order of their indexes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._indexes = {labels: index for index, labels in enumerate(_SHARED)}

    def __len__(self) -> int:
        return len(self._indexes)

    def index(self, labels: TrafficLabels) -> int:
        """The index of a label set, the same for the life of the process."""
        index = self._indexes.get(labels)
        if index is not None:
            return index
        if len(self._indexes) >= self._limit:
            return _SHARED.index(TrafficLabels(labels.reporter))
        index = self._indexes[labels] = len(self._indexes)
        if index == self._limit - 1:
            log.warn(f"{self._limit} label sets: further ones are counted together")
        return index

    def counts(self, packed: bytes) -> Mapping[TrafficLabels, SlotCounts]:
        """What the core counted, for label sets that were used."""
        numbers = memoryview(packed).cast("Q")
        found = {}
        for labels, index in self._indexes.items():
            row = numbers[index * COLUMNS : (index + 1) * COLUMNS].tolist()
            if any(row):
                closed = {flag: n for flag, n in zip(FLAGS, row[_CLOSED:], strict=True) if n}
                found[labels] = SlotCounts(row[_OPENED], row[_RECEIVED], row[_SENT], closed)
        return found
