# SPDX-License-Identifier: Apache-2.0
"""Who computes for long offers the processor, but does not give it away."""

from __future__ import annotations

import pytest

from ztunnel_py.yields import EVERY_S, Yields

STEP_S = 0.00001


class Machine:
    """A clock, and what others do with the processor each time that it is given to them."""

    def __init__(self, taken_s: float) -> None:
        self.time_s = 0.0
        self.given = 0
        self._taken_s = taken_s

    def now(self) -> float:
        return self.time_s

    def give(self) -> None:
        self.given += 1
        self.time_s += self._taken_s


def computed(machine: Machine, seconds: float) -> None:
    """Computes for so long, and offers after each step."""
    yields = Yields(machine.now, machine.give)
    for _ in range(round(seconds / STEP_S)):
        machine.time_s += STEP_S
        yields.offer()


def test_others_wait_for_a_fraction_of_a_millisecond() -> None:
    machine = Machine(taken_s=0.0)

    computed(machine, 1.0)

    assert machine.given == pytest.approx(1.0 / EVERY_S, rel=0.1)


def test_others_that_compute_as_well_get_half_of_the_time_at_most() -> None:
    machine = Machine(taken_s=0.004)

    computed(machine, 1.0)

    assert machine.time_s == pytest.approx(2.0, rel=0.02)
