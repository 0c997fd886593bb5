# SPDX-License-Identifier: Apache-2.0
"""Addresses that are asked for one by one, from a strict control plane over real TLS."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.state.build import at
from tests.support.clock import FakeClock
from tests.support.istiod.mesh import Mesh
from tests.support.wait import DEADLINE_S, until
from tests.xds import build
from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest
from ztunnel_py.xds import on_demand
from ztunnel_py.xds.on_demand import OnDemand
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION, Outcome

if TYPE_CHECKING:
    from tests.support.istiod.stream import Stream
    from tests.xds.conftest import Discovery, Plane

A = build.uid("a")


async def opened(plane: Plane) -> tuple[Discovery, Stream]:
    """A client that hears of addresses on demand only, and is ready."""
    discovery = plane.discover(XDS_ON_DEMAND="true", ISTIO_META_DNS_CAPTURE="false")
    stream = await plane.istiod.stream()
    opening = await stream.opening()
    assert list(opening[ADDRESS].resource_names_subscribe) == ["*"]
    assert list(opening[ADDRESS].resource_names_unsubscribe) == ["*"]
    await stream.push(type_url=AUTHORIZATION)
    await stream.accepted()
    await discovery.synced()
    return discovery, stream


def asked(*names: str) -> DeltaDiscoveryRequest:
    """A question."""
    return DeltaDiscoveryRequest(type_url=ADDRESS, resource_names_subscribe=names)


def fetch(discovery: Discovery, *names: str) -> asyncio.Task[None]:
    """Somebody who waits for `names`."""
    return asyncio.ensure_future(discovery.client.on_demand.fetch(names))


@pytest.mark.spec("state-29")
async def test_an_address_is_asked_for_and_known_when_the_wait_is_over(plane: Plane) -> None:
    discovery, stream = await opened(plane)

    waiting = fetch(discovery, "nw/1.2.3.4")
    assert await stream.request() == asked("nw/1.2.3.4")
    assert not waiting.done()
    pod = build.pod("a", "1.2.3.4", network="nw")
    pod.aliases.append("nw/1.2.3.4")
    await stream.push(pod)
    await waiting

    assert discovery.store.workload_at(at("1.2.3.4", "nw")) is discovery.store.workload(A)


async def test_answer_to_another_question_ends_no_wait(plane: Plane) -> None:
    discovery, stream = await opened(plane)
    first, second = fetch(discovery, "/1.2.3.4"), fetch(discovery, "/1.2.3.5")
    await stream.request()
    await stream.request()

    await stream.push(removed=["/1.2.3.5"])
    await second

    assert not first.done()
    await stream.push(removed=["/1.2.3.4"])
    await first


@pytest.mark.parametrize("answer", ["its name", "removal", "refused"])
async def test_any_answer_ends_the_wait(answer: str, plane: Plane) -> None:
    discovery, stream = await opened(plane)
    waiting = fetch(discovery, "/1.2.3.4")
    await stream.request()

    match answer:
        case "its name":
            pod = build.pod("a", "1.2.3.4")
            await stream.push(build.resource(ADDRESS, "/1.2.3.4", pod.resource.value))
        case "removal":
            await stream.push(removed=["/1.2.3.4"])
        case _:
            await stream.push(build.resource(ADDRESS, "/1.2.3.4", b"\xff"))

    async with asyncio.timeout(DEADLINE_S):
        await waiting


async def test_all_who_wait_for_a_name_share_one_question(plane: Plane) -> None:
    discovery, stream = await opened(plane)
    waiting = [fetch(discovery, "/1.2.3.4") for _ in range(5)]
    assert await stream.request() == asked("/1.2.3.4")
    waiting.pop().cancel()

    await stream.push(build.pod("b", "9.9.9.9"))
    await stream.accepted()
    assert not any(one.done() for one in waiting)
    await stream.push(removed=["/1.2.3.4"])
    await stream.accepted()

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*waiting)


async def test_an_address_that_has_been_answered_is_not_asked_for_again(plane: Plane) -> None:
    discovery, stream = await opened(plane)
    waiting = fetch(discovery, A)
    await stream.request()
    await stream.push(build.pod("a", "1.2.3.4"))
    await stream.accepted()
    await waiting

    async with asyncio.timeout(DEADLINE_S):
        await fetch(discovery, A)


async def test_unanswered_questions_are_part_of_the_next_stream(plane: Plane) -> None:
    discovery, stream = await opened(plane)
    waiting = fetch(discovery, "/1.2.3.4")
    await stream.request()

    stream.end()
    stream = await plane.istiod.stream()
    opening = await stream.opening()
    assert dict(opening[ADDRESS].initial_resource_versions) == {"/1.2.3.4": ""}
    await stream.push(removed=["/1.2.3.4"])

    async with asyncio.timeout(DEADLINE_S):
        await waiting


async def test_questions_of_a_time_without_a_stream_are_asked_on_the_next(plane: Plane) -> None:
    plane.istiod.serve = Mesh([build.pod("a", "1.2.3.4")]).serve
    await plane.istiod.stop()
    discovery = plane.discover(XDS_ON_DEMAND="true", ISTIO_META_DNS_CAPTURE="false")
    await discovery.ended("ConnectionError")
    waiting = fetch(discovery, A, "/9.9.9.9")

    await plane.istiod.start()

    async with asyncio.timeout(DEADLINE_S):
        await waiting
    assert discovery.uids() == {A}


async def test_only_what_was_asked_for_is_heard_of(plane: Plane) -> None:
    mesh = Mesh([build.pod("a", "1.2.3.4"), build.pod("b", "5.6.7.8"), build.policy("p")])
    plane.istiod.serve = mesh.serve
    discovery = plane.discover(XDS_ON_DEMAND="true", ISTIO_META_DNS_CAPTURE="false")
    await discovery.synced()
    assert discovery.uids() == set()

    await fetch(discovery, A)
    mesh.change(build.pod("a", "1.2.3.5"), build.pod("b", "5.6.7.9"))
    await until(lambda: discovery.store.workload_at(at("1.2.3.5")) is not None, "the change")

    assert discovery.uids() == {A}
    assert list(discovery.store.policies()) == ["ns/p"]


# --- without a server


class Nobody:
    """Takes questions and answers none."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, name: str) -> bool:
        """An answer is to come."""
        self.asked.append(name)
        return True


async def test_a_wait_is_bounded_and_what_is_unanswered_stays_unknown() -> None:
    clock, nobody = FakeClock(), Nobody()
    demands = OnDemand(nobody.ask, clock)

    for _ in range(2):
        waiting = asyncio.ensure_future(demands.fetch(["/1.2.3.4"]))
        await until(lambda: clock.pending == 1, "somebody waits")
        clock.advance(on_demand.WAIT_S - 0.1)
        assert not waiting.done()
        clock.advance(0.1)
        with pytest.raises(TimeoutError, match=r"^5 s: .*/1\.2\.3\.4"):
            await waiting

    assert nobody.asked == ["/1.2.3.4"]


async def test_the_number_of_open_questions_is_bounded() -> None:
    clock = FakeClock()
    demands = OnDemand(Nobody().ask, clock)
    names = [f"/{number}" for number in range(on_demand.OPEN_MAX)]
    waiting = asyncio.ensure_future(demands.fetch(names))
    await until(lambda: clock.pending == 1, "they wait")

    with pytest.raises(TimeoutError):
        await demands.fetch(["/one-too-many"])

    demands.answered(Outcome(ADDRESS, "n", removed=set(names)))
    await waiting
