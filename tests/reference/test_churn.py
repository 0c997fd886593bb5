# SPDX-License-Identifier: Apache-2.0
"""A client is busy once it has used a quarter of its ports toward an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.clock import FakeClock
from ztunnel_py.reference import churn
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from pathlib import Path

APP, OTHER_APP = SockAddr.parse("10.0.0.9:80"), SockAddr.parse("10.0.0.9:81")
CLIENT = SockAddr.parse("10.0.0.1:1").ip


@pytest.fixture
def clock() -> FakeClock:
    """Time of the test."""
    return FakeClock()


@pytest.fixture
def counted(clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> churn.Churn:
    """A count where a client has 40 ports."""
    ports = tmp_path / "range"
    ports.write_text("1000\t1039\n")
    monkeypatch.setattr(churn, "_PORT_RANGE", ports)
    return churn.Churn(clock)


def test_a_quarter_of_the_ports_makes_a_pair_busy(counted: churn.Churn) -> None:
    for _ in range(9):
        counted.count(CLIENT, APP)
    assert not counted.is_busy(CLIENT, APP)

    counted.count(CLIENT, APP)

    assert counted.is_busy(CLIENT, APP)
    assert not counted.is_busy(CLIENT, OTHER_APP)


def test_a_pair_stays_busy_for_a_minute_more_and_then_rests(
    counted: churn.Churn, clock: FakeClock
) -> None:
    for _ in range(10):
        counted.count(CLIENT, APP)

    clock.advance(61)
    is_busy_after_one = counted.is_busy(CLIENT, APP)
    clock.advance(61)

    assert is_busy_after_one
    assert not counted.is_busy(CLIENT, APP)
