# SPDX-License-Identifier: Apache-2.0
"""Profiles, as viewers of pprof read them."""

from __future__ import annotations

import asyncio
import gzip
import threading
import tracemalloc
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.admin.conftest import client_of
from ztunnel_py.admin.http import Answer, Request
from ztunnel_py.admin.pprof import Profiles
from ztunnel_py.admin.server import admin_server
from ztunnel_py.proto.profile_pb2 import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.admin.http import HttpServer

PROFILE, HEAP = "/debug/pprof/profile", "/debug/pprof/heap"


class Seen(NamedTuple):
    """A sample: functions, the innermost first; values; thread."""

    functions: list[str]
    values: list[int]
    thread: str


def read(body: bytes) -> tuple[list[str], list[Seen]]:
    """The names of the values, and the samples; every reference is followed."""
    profile = Profile.FromString(gzip.decompress(body))
    text = profile.string_table
    assert text[0] == ""
    functions = {one.id: text[one.name] for one in profile.function}
    locations = {one.id: functions[one.line[0].function_id] for one in profile.location}
    samples = [
        Seen(
            [locations[number] for number in one.location_id],
            list(one.value),
            next((text[label.str] for label in one.label if text[label.key] == "thread"), ""),
        )
        for one in profile.sample
    ]
    assert profile.period > 0
    return [text[one.type] for one in profile.sample_type], samples


def server() -> HttpServer:
    return admin_server(dict, lambda: None, (("127.0.0.1", 0),))


@pytest.fixture
def busy() -> Iterator[None]:
    """A thread that never rests."""
    is_over = threading.Event()

    def spin_at_the_core() -> None:
        while not is_over.is_set():
            sum(range(1000))

    def spin() -> None:
        spin_at_the_core()

    thread = threading.Thread(target=spin, name="spinner")
    thread.start()
    yield
    is_over.set()
    thread.join()


@pytest.fixture
def untraced() -> Iterator[None]:
    """Memory is not traced, before and after."""
    tracemalloc.stop()
    yield
    tracemalloc.stop()


async def test_processor_time_is_found_where_it_is_spent(busy: None) -> None:
    async with client_of(server()) as client:
        reply = await client.ask(f"{PROFILE}?seconds=1&frequency=200")

    types, samples = read(reply.body)
    spun = [one for one in samples if one.thread == "spinner"]
    used_ns = sum(one.values[1] for one in spun)
    assert (reply.status, types) == (200, ["samples", "cpu"])
    assert 0.2e9 < used_ns < 1.5e9
    assert sum(one.values[0] for one in spun) > 10
    assert all("spin_at_the_core" in " ".join(one.functions) for one in spun)
    assert any(one.functions[-1] == "Thread._bootstrap" for one in spun)


async def test_a_thread_that_waits_has_used_nothing() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="sleeper")
    thread.start()

    async with client_of(server()) as client:
        reply = await client.ask(f"{PROFILE}?seconds=1")
    release.set()
    thread.join()

    assert "sleeper" not in {one.thread for one in read(reply.body)[1]}


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("seconds=0", b"invalid seconds value; expected 1-300\n"),
        ("seconds=301", b"invalid seconds value; expected 1-300\n"),
        ("seconds=1.5", b"invalid seconds value; expected 1-300\n"),
        ("seconds=", b"invalid seconds value; expected 1-300\n"),
        ("seconds=" + "9" * 5000, b"invalid seconds value; expected 1-300\n"),
        ("seconds=1&frequency=0", b"invalid frequency value; expected 1-1000\n"),
        ("seconds=1&frequency=1001", b"invalid frequency value; expected 1-1000\n"),
    ],
)
async def test_what_is_not_a_number_in_range_is_refused(query: str, answer: bytes) -> None:
    async with client_of(server()) as client:
        reply = await client.ask(f"{PROFILE}?{query}")

    assert (reply.status, reply.body) == (400, answer)


async def test_one_profile_is_taken_at_a_time(untraced: None) -> None:
    handlers = Profiles().pages()

    async def ask(path: str, **query: str) -> Answer:
        found = handlers[path](Request("GET", path, (), query))
        return found if isinstance(found, Answer) else await found

    first = asyncio.ensure_future(ask(PROFILE, seconds="1"))
    await asyncio.sleep(0)  # it begins
    second = await ask(PROFILE)
    await ask(f"{HEAP}/profiling", activate="true")
    heap = await ask(HEAP)
    statuses = (await first).status, second.status, heap.status, (await ask(HEAP)).status

    assert statuses == (200, 409, 409, 200)


async def test_memory_is_found_where_it_was_allocated_once_that_is_traced(untraced: None) -> None:
    async with client_of(server()) as client:
        before = await client.ask(HEAP)
        idle = await client.ask(f"{HEAP}/profiling")
        active = await client.ask(f"{HEAP}/profiling?activate=true")
        held = [bytes(1000) for _ in range(1000)]
        reply = await client.ask(HEAP)
        over = await client.ask(f"{HEAP}/profiling?activate=false")
        wrong = await client.ask(f"{HEAP}/profiling?activate=1")

    types, samples = read(reply.body)
    ours = [one for one in samples if one.functions[0].startswith("test_pprof.py:")]
    (other,) = [one for one in samples if one.functions[0].startswith("[not traced")]
    assert len(held) == 1000
    assert before.status == 500
    assert b"/debug/pprof/heap/profiling?activate=true" in before.body
    said = [one.body.decode().rpartition(" ")[2] for one in (idle, active, over)]
    assert said == ["false\n", "true\n", "false\n"]
    assert wrong.status == 400
    assert types == ["inuse_objects", "inuse_space"]
    assert max(one.values[1] for one in ours) > 1_000_000
    assert other.values[1] > 1 << 20
