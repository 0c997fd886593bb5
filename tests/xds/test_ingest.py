# SPDX-License-Identifier: Apache-2.0
"""Responses become state: good resources count, bad ones do not hurt them, nobody is stalled."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.state.build import at
from tests.state.build import pod as local_pod
from tests.xds import build
from ztunnel_py.proto.discovery_pb2 import Resource
from ztunnel_py.state.store import Change, Store
from ztunnel_py.state.workload import NamespacedHostname
from ztunnel_py.telemetry import log
from ztunnel_py.xds import slices
from ztunnel_py.xds.counts import Counts
from ztunnel_py.xds.ingest import Ingest
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION
from ztunnel_py.xds.wire import MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ztunnel_py.state.store import Update
    from ztunnel_py.xds.session import Outcome

A, B = build.uid("a"), build.uid("b")
WEB = NamespacedHostname("ns", "web.test")


async def take(
    store: Store,
    *resources: Resource,
    type_url: str = ADDRESS,
    removed: Iterable[str] = (),
    now: Callable[[], float] = lambda: 0.0,
) -> Outcome:
    """Has a store take a response; by default no time passes meanwhile."""
    message = build.response(*resources, type_url=type_url, removed=removed)
    return await Ingest(store, Counts(), now).take(message.SerializeToString())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages at warn and above."""
    found: list[str] = []
    monkeypatch.setattr(log.Logger, "warn", lambda _, text, fields=None: found.append(text))
    monkeypatch.setattr(log.Logger, "error", lambda _, text, fields=None: found.append(text))
    return found


async def test_a_response_of_all_kinds_is_applied() -> None:
    store = Store()

    outcome = await take(store, build.pod("a", "10.0.0.1"), build.service("web.test", "10.1.0.1"))
    await take(store, build.policy("p"), type_url=AUTHORIZATION)

    assert store.workload_at(at("10.0.0.1")) is store.workload(A)
    assert store.service_at(at("10.1.0.1")) is store.service(WEB)
    assert list(store.policies()) == ["ns/p"]
    assert outcome.accepted == {A: "v1", "ns/web.test": "v1"}
    assert (outcome.type_url, outcome.nonce) == (ADDRESS, "n1")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (build.resource(ADDRESS, "bad", b"\xff"), "failed to decode"),
        pytest.param(
            build.resource(ADDRESS, "bad", b""),
            "unknown address type",
            marks=pytest.mark.spec("state-16"),
        ),
        (Resource(name="bad"), "the resource has no payload"),
        (build.pod("bad", uid="bad", addresses=[bytes(5)]), "an address has 5 bytes"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_bad_resource_is_refused_alone(bad: Resource, problem: str, place: int) -> None:
    store, resources = Store(), [build.pod("a", "10.0.0.1"), build.pod("b", "10.0.0.2")]
    resources.insert(place, bad)

    outcome = await take(store, *resources)

    assert {w.uid for w in store.workloads()} == {A, B}
    assert set(outcome.accepted) == {A, B}
    assert list(outcome.rejected) == ["bad"]
    assert outcome.rejected["bad"].startswith(problem)


@pytest.mark.spec("state-17")
async def test_a_name_that_comes_and_goes_in_one_response_is_gone() -> None:
    store = Store()

    resources = build.pod("a", "10.0.0.1"), build.service("web.test")
    await take(store, *resources, removed=[A, "ns/web.test"])

    assert not list(store.workloads())
    assert not list(store.services())


@pytest.mark.parametrize(
    ("removed", "left"), [("ns/p", ["ns/q"]), ("ns/unknown", ["ns/p", "ns/q"])]
)
async def test_a_policy_is_removed_by_its_name(removed: str, left: list[str]) -> None:
    store = Store()
    await take(store, build.policy("p"), build.policy("q"), type_url=AUTHORIZATION)

    await take(store, removed=[removed], type_url=AUTHORIZATION)

    assert list(store.policies()) == left


async def test_a_policy_is_known_by_the_name_of_its_resource() -> None:
    store, resource = Store(), build.policy("p")
    resource.name = "elsewhere/renamed"

    await take(store, resource, type_url=AUTHORIZATION)

    assert list(store.policies()) == ["elsewhere/renamed"]


@pytest.mark.spec("state-45")
@pytest.mark.parametrize(
    ("removed", "warnings"), [("a/b/c", 0), ("ns/host", 1), ("host", 1), (A, 0), ("ns/web.test", 0)]
)
async def test_an_unknown_removal_is_told_unless_it_is_a_workload_that_was(
    removed: str, warnings: int, said: list[str]
) -> None:
    store = Store()
    await take(store, build.pod("a", "10.0.0.1"), build.service("web.test"))

    await take(store, removed=[removed])

    assert len(said) == warnings
    assert all(repr(removed) in text for text in said)


async def test_an_unknown_type_changes_nothing_and_is_told(said: list[str]) -> None:
    store = Store()

    outcome = await take(store, build.pod("a", "10.0.0.1"), type_url="t/other", removed=["ns/x"])

    assert store.discovery_epoch == 0
    assert not outcome.rejected
    assert said == ["unknown type"]


@pytest.mark.parametrize("type_url", [ADDRESS, AUTHORIZATION])
async def test_what_is_replaced_goes_unless_the_response_has_it(type_url: str) -> None:
    store, counts = Store(), Counts()
    await take(store, build.pod("a", "10.0.0.1"), build.pod("b", "10.0.0.2"))
    await take(store, build.policy("p"), build.policy("q"), type_url=AUTHORIZATION)
    bad = build.resource(type_url, B if type_url == ADDRESS else "ns/q", b"\xff")
    response = build.response(bad, type_url=type_url)

    known = {ADDRESS: [A, B], AUTHORIZATION: ["ns/p", "ns/q"]}
    outcome = await Ingest(store, counts).take(response.SerializeToString(), known.__getitem__)

    assert outcome.removed == {A if type_url == ADDRESS else "ns/p"}
    assert [w.uid for w in store.workloads()] == [B] if type_url == ADDRESS else [A, B]
    assert list(store.policies()) == (["ns/p", "ns/q"] if type_url == ADDRESS else ["ns/q"])


@pytest.mark.spec("state-120")
async def test_local_state_stays_until_it_is_replaced_or_removed_by_its_key() -> None:
    store = Store()
    local = [local_pod("a", "10.0.0.1", uid=A), local_pod("b", "10.0.0.2", uid=B)]
    store.apply([*local, local_pod("c", "10.0.0.3", uid="c")])

    await take(store, build.pod("a", "10.0.9.9"), removed=[B])

    assert store.workload_at(at("10.0.9.9")) is store.workload(A)
    assert store.workload_at(at("10.0.0.1")) is None
    assert store.workload(B) is None
    assert store.workload_at(at("10.0.0.3")) is store.workload("c")


async def test_what_cannot_be_read_ends_the_response_and_keeps_what_could_be() -> None:
    store = Store()
    whole = build.response(build.pod("a", "10.0.0.1")).SerializeToString()

    with pytest.raises(MalformedError):
        await Ingest(store, Counts()).take(whole + b"\x12\x7f")

    assert store.discovery_epoch <= 1


@pytest.mark.spec("ops-109")
async def test_responses_and_their_payloads_are_counted_by_type() -> None:
    ingest = Ingest(Store(), counts := Counts())
    pods = [build.pod("a", "10.0.0.1"), build.pod("b", "10.0.0.2")]

    await ingest.take(build.response(*pods).SerializeToString())
    await ingest.take(build.response(removed=[A]).SerializeToString())
    await ingest.take(build.response(type_url="t/other").SerializeToString())

    assert counts.messages == {ADDRESS: 2, "unknown": 1}
    size = sum(len(pod.resource.value) for pod in pods)
    assert counts.message_bytes == {ADDRESS: size, "unknown": 0}


# --- slices


class Ticks:
    """A clock that moves by a step each time it is read."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self._step_s
        return self._now


async def test_a_slice_is_bounded_in_time_and_moves_the_epoch_once() -> None:
    store, changes = Store("node-a"), list[Change]()
    store.subscribe(changes.append)
    pods = [build.pod(f"p{i}", f"10.0.0.{i}") for i in range(100)]

    await take(store, *pods, now=Ticks(slices.SLICE_S / 10))

    assert store.discovery_epoch == len(changes)
    assert 10 <= len(changes) <= 12
    assert set(changes) == {Change.DISCOVERY}


async def test_others_run_between_slices_and_see_a_consistent_store() -> None:
    store = Store()
    await take(store, build.service("web.test", "10.1.0.1"))
    service = store.service(WEB)
    assert service is not None
    pods = [build.pod(f"p{i}", f"10.0.0.{i}", **build.serving("web.test")) for i in range(100)]
    seen: list[int] = []

    async def look() -> None:
        while not seen or seen[-1] < len(pods):
            known = sum(1 for _ in store.workloads())
            assert len(store.members(service).pairs) == known
            seen.append(known)
            await asyncio.sleep(0)

    looking = asyncio.ensure_future(look())
    await take(store, *pods, now=Ticks(slices.SLICE_S / 10))
    await looking

    assert len(set(seen)) > 5


@pytest.mark.parametrize("text", ["removals", "bad resources", "a response of unknown type"])
async def test_others_run_however_little_a_response_changes(text: str) -> None:
    bad = [build.resource(ADDRESS, f"bad-{i}", b"\xff") for i in range(100)]
    removed = [build.uid(str(i)) for i in range(100)]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    now = Ticks(slices.SLICE_S / 10)
    match text:
        case "removals":
            await take(Store(), removed=removed, now=now)
        case "bad resources":
            await take(Store(), *bad, now=now)
        case _:
            await take(Store(), *bad, type_url="t/other", now=now)
    counting.cancel()

    assert turns >= 20


async def test_what_a_large_response_brought_is_not_collected_over_and_over() -> None:
    updates = itertools.chain(
        (local_pod(f"p{i}", f"10.0.{i >> 8}.{i & 255}") for i in range(slices.LARGE)), [None]
    )
    steps: Iterator[Update | None] = iter(updates)
    before = gc.get_freeze_count()

    await slices.Slices(store := Store()).apply(steps)

    assert sum(1 for _ in store.workloads()) == slices.LARGE
    assert gc.get_freeze_count() > before + slices.LARGE
    gc.unfreeze()
