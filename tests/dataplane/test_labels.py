# SPDX-License-Identifier: Apache-2.0
"""Which label set an index of the core's counters stands for."""

from __future__ import annotations

import struct

from ztunnel_py.dataplane.counters import SlotCounts
from ztunnel_py.dataplane.labels import COLUMNS, Slots
from ztunnel_py.decide.verdict import TrafficLabels
from ztunnel_py.errors import Flag

A, B, C = (TrafficLabels("source", name) for name in "abc")


def packed(slots: Slots, rows: dict[int, list[int]]) -> bytes:
    """Counters as the core returns them."""
    nothing = [0] * COLUMNS
    numbers = [number for index in range(len(slots)) for number in rows.get(index, nothing)]
    return struct.pack(f"={len(numbers)}Q", *numbers)


def test_label_set_keeps_its_index() -> None:
    slots = Slots(100)
    first, second = slots.index(A), slots.index(B)

    assert first != second
    assert (slots.index(A), slots.index(B)) == (first, second)


def test_label_sets_beyond_the_limit_share_one_that_names_only_the_reporter() -> None:
    slots = Slots(limit=3)
    kept = slots.index(A)

    late = {slots.index(B), slots.index(C), slots.index(TrafficLabels("source"))}

    assert slots.index(A) == kept
    assert len(late) == 1
    assert slots.index(TrafficLabels("destination", "a")) not in {kept, *late}
    assert len(slots) == 3


def test_label_sets_that_were_used_are_shown_with_their_flags() -> None:
    slots = Slots(100)
    slots.index(A)
    row = [0] * COLUMNS
    row[:4] = [3, 100, 200, 1]
    row[3 + list(Flag).index(Flag.CONNECT)] = 2

    counts = slots.counts(packed(slots, {slots.index(B): row}))

    assert counts == {B: SlotCounts(3, 100, 200, {Flag.NONE: 1, Flag.CONNECT: 2})}
