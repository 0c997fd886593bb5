# SPDX-License-Identifier: Apache-2.0
"""Counters by index: which label set an index of the core's counters stands for.

There are as many indexes as the core has; once they are used up, further label sets share one per
reporter that says nothing else, so that traffic is still counted and memory is bounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ztunnel_py.dataplane.counters import SlotCounts
from ztunnel_py.dataplane.packing import FLAGS
from ztunnel_py.decide.verdict import TrafficLabels
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHARED = TrafficLabels("source"), TrafficLabels("destination")
"""Label sets of whatever comes too late; they are always there."""
_OPENED, _RECEIVED, _SENT, _CLOSED = 0, 1, 2, 3
COLUMNS = _CLOSED + len(FLAGS)
"""Numbers of one index, 64 bits each."""
_ROW_SIZE = COLUMNS * 8
_UNUSED = bytes(_ROW_SIZE)

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

    def counts(self, packed: bytes) -> SlotTable:
        """What the core counted, for label sets that were used."""
        return SlotTable(self._indexes, packed)


class SlotTable(Mapping[TrafficLabels, SlotCounts]):
    """Counters of label sets that were used; a row is read when it is looked at.

    There may be very many, and who looks may want to do so in slices.

    Args:
        indexes: may grow later.
        packed: numbers of the indexes that there are now.
    """

    def __init__(self, indexes: Mapping[TrafficLabels, int], packed: bytes) -> None:
        self._indexes = indexes
        self._labels = tuple(indexes)
        self._packed = packed

    def __getitem__(self, labels: TrafficLabels) -> SlotCounts:
        packed = self._row(self._indexes[labels])
        if packed in (_UNUSED, b""):
            raise KeyError(labels)
        row = memoryview(packed).cast("Q").tolist()
        closed = {flag: n for flag, n in zip(FLAGS, row[_CLOSED:], strict=True) if n}
        return SlotCounts(row[_OPENED], row[_RECEIVED], row[_SENT], closed)

    def __iter__(self) -> Iterator[TrafficLabels]:
        used = (self._row(index) != _UNUSED for index in range(len(self._labels)))
        return itertools.compress(self._labels, used)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _row(self, index: int) -> bytes:
        return self._packed[index * _ROW_SIZE : (index + 1) * _ROW_SIZE]
