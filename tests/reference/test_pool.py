# SPDX-License-Identifier: Apache-2.0
"""Who shares a tunnel, who waits for it, and when it is let go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from tests.support.clock import FakeClock
from tests.support.wait import settle
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.reference.pool import Pool, PoolKey
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from ztunnel_py.reference.tunnel import Tunnel

HOP = SockAddr.parse("10.0.0.2:15008")
KEY = PoolKey((Identity("td", "ns", "b"),), HOP, SockAddr.parse("10.0.0.1:1").ip)
IDLE_S = 300.0


class FakeTunnel:
    """As much of a tunnel as a pool sees."""

    def __init__(self, max_streams: int = 1000) -> None:
        self.session = self
        self.max_streams = max_streams
        self.is_usable = True
        self.was_retired = False
        self.was_closed = False

    def retire(self) -> None:
        """As `Tunnel`."""
        self.was_retired = True

    def close(self) -> None:
        """As `Tunnel`."""
        self.was_closed = True


class Dialler:
    """Makes tunnels when the test opens the gate."""

    def __init__(self) -> None:
        self.made: list[FakeTunnel] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.dials = 0

    async def __call__(self) -> Tunnel:
        """One dial."""
        self.dials += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.made.append(FakeTunnel())
        return cast("Tunnel", self.made[-1])


def pool(limit: int = 100) -> tuple[Pool, FakeClock, Dialler]:
    """An empty pool."""
    clock = FakeClock()
    return Pool(clock, limit, IDLE_S), clock, Dialler()


async def test_a_hundred_first_requests_share_one_dial() -> None:
    made, _, dial = pool(101)
    dial.gate.clear()

    waiting = [asyncio.ensure_future(made.lease(KEY, dial)) for _ in range(100)]
    await settle(2)
    dial.gate.set()
    leases = await asyncio.gather(*waiting)

    assert dial.dials == 1
    assert {id(lease.tunnel) for lease in leases} == {id(dial.made[0])}


@pytest.mark.parametrize(("limit", "requests", "tunnels"), [(2, 4, 2), (1, 3, 3), (3, 2, 1)])
async def test_a_tunnel_takes_no_more_than_its_limit(
    limit: int, requests: int, tunnels: int
) -> None:
    made, _, dial = pool(limit)

    await asyncio.gather(*(made.lease(KEY, dial) for _ in range(requests)))

    assert dial.dials == tunnels


async def test_a_place_given_back_is_used_again() -> None:
    made, _, dial = pool(1)
    first = await made.lease(KEY, dial)

    first.give_back()
    second = await made.lease(KEY, dial)

    assert second.is_reused
    assert dial.dials == 1


async def test_the_other_sides_limit_counts_once_it_is_known() -> None:
    made, _, dial = pool(100)
    await made.lease(KEY, dial)
    dial.made[0].max_streams = 1

    await made.lease(KEY, dial)

    assert dial.dials == 2


async def test_all_who_waited_for_a_failed_dial_get_its_error() -> None:
    made, _, dial = pool()
    dial.gate.clear()
    dial.error = OSError("refused")

    waiting = [asyncio.ensure_future(made.lease(KEY, dial)) for _ in range(5)]
    await settle(2)
    dial.gate.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)

    assert found == [dial.error] * 5
    assert dial.dials == 1


async def test_one_who_stops_waiting_does_not_end_the_dial_of_the_others() -> None:
    made, _, dial = pool()
    dial.gate.clear()
    first = asyncio.ensure_future(made.lease(KEY, dial))
    second = asyncio.ensure_future(made.lease(KEY, dial))
    await settle(2)

    first.cancel()
    await settle(2)
    dial.gate.set()
    lease = await second

    assert lease.tunnel is cast("Tunnel", dial.made[0])


async def test_an_unused_tunnel_is_let_go_after_the_idle_time() -> None:
    made, clock, dial = pool()
    lease = await made.lease(KEY, dial)
    clock.advance(IDLE_S * 3)
    assert not dial.made[0].was_retired

    lease.give_back()
    clock.advance(IDLE_S - 1)
    assert not dial.made[0].was_retired
    clock.advance(2)

    assert dial.made[0].was_retired
    assert made.tunnels() == []


async def test_a_tunnel_that_is_going_away_is_not_chosen() -> None:
    made, _, dial = pool()
    (await made.lease(KEY, dial)).give_back()
    dial.made[0].is_usable = False

    lease = await made.lease(KEY, dial)

    assert not lease.is_reused
    assert dial.dials == 2


async def test_keys_that_differ_in_anything_share_nothing() -> None:
    made, _, dial = pool()
    others = [
        KEY._replace(sans=(*KEY.sans, Identity("td", "ns", "c"))),
        KEY._replace(next_hop=SockAddr.parse("10.0.0.3:15008")),
        KEY._replace(source=SockAddr.parse("10.0.0.7:1").ip),
    ]

    for key in (KEY, *others):
        await made.lease(key, dial)

    assert dial.dials == 4


async def test_the_end_closes_tunnels_and_cancels_dials() -> None:
    made, clock, dial = pool(1)
    await made.lease(KEY, dial)
    dial.gate.clear()
    opening = asyncio.ensure_future(made.lease(KEY, dial))
    await settle(2)

    made.abort_all()
    await asyncio.wait([opening])

    assert dial.made[0].was_closed
    assert opening.cancelled()
    assert clock.pending == 0
