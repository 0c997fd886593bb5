# SPDX-License-Identifier: Apache-2.0
"""A text that many ask for at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.admin.conftest import client_of
from tests.support.wait import settle, until
from ztunnel_py.admin import http
from ztunnel_py.admin.json_text import Each
from ztunnel_py.admin.rendering import Rendering
from ztunnel_py.admin.server import admin_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LOOPBACK = (("127.0.0.1", 0),)


class Counted:
    """A value that says how often it has been asked for."""

    def __init__(self, n_elements: int = 1000) -> None:
        self.n_made = 0
        self.asked = asyncio.Event()
        self._n_elements = n_elements

    def __call__(self) -> dict[str, object]:
        self.n_made += 1
        self.asked.set()
        return {"made": self.n_made, "list": Each(lambda n: "x" * 100, range(self._n_elements))}


async def _made(rendering: Rendering) -> int:
    async with rendering.shared() as blocks:
        return int(json.loads(b"".join(blocks))["made"])


async def test_who_asks_at_once_shares_and_who_asks_later_gets_a_later_one() -> None:
    value = Counted()
    rendering = Rendering(value)

    first = asyncio.ensure_future(_made(rendering))
    await value.asked.wait()
    later = [asyncio.ensure_future(_made(rendering)) for _ in range(100)]

    assert await first == 1
    assert set(await asyncio.gather(*later)) == {2}
    assert await _made(rendering) == 3


async def test_loop_goes_on_while_a_text_is_made() -> None:
    turns, gaps = 0, []

    async def turn() -> None:
        nonlocal turns
        last = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(0)
            turns, now = turns + 1, asyncio.get_running_loop().time()
            gaps.append(now - last)
            last = now

    turning = asyncio.ensure_future(turn())
    async with Rendering(Counted(20_000)).shared() as blocks:
        length = sum(map(len, blocks))
    turning.cancel()

    assert length > 2_000_000
    assert turns >= length // 10_000


async def test_third_text_waits_until_the_readers_of_one_have_gone() -> None:
    value = Counted()
    rendering = Rendering(value)
    async with contextlib.AsyncExitStack() as second:
        async with rendering.shared():
            await second.enter_async_context(rendering.shared())
            third = asyncio.ensure_future(_made(rendering))
            for _ in range(1000):
                await asyncio.sleep(0)
            assert (value.n_made, third.done()) == (2, False)

        assert await third == 3


async def test_a_text_is_read_by_few_at_the_same_time() -> None:
    rendering, release, n_reading = Rendering(Counted(1)), asyncio.Event(), 0

    async def read() -> None:
        nonlocal n_reading
        async with rendering.shared():
            n_reading += 1
            await release.wait()

    reading = [asyncio.ensure_future(read()) for _ in range(20)]
    await until(lambda: n_reading == 8, "eight readers")
    await settle()
    assert n_reading == 8

    release.set()
    await asyncio.gather(*reading)
    assert n_reading == 20


async def test_reader_that_goes_while_its_text_is_made_leaves_it_to_the_others() -> None:
    value = Counted()
    rendering = Rendering(value)
    first = asyncio.ensure_future(_made(rendering))
    second = asyncio.ensure_future(_made(rendering))
    await value.asked.wait()

    first.cancel()

    assert await second == 2
    assert await _made(rendering) == 3


async def test_failure_is_told_and_ends_there() -> None:
    answers: list[Any] = [ValueError("half a state"), {"whole": True}]

    def make() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with client_of(admin_server(make, lambda: None, _LOOPBACK)) as client:  # type: ignore[arg-type]
        failed = await client.ask("/config_dump")
        good = await client.ask("/config_dump")

    assert (failed.status, failed.body) == (500, b"half a state")
    assert (good.status, json.loads(good.body)) == (200, {"whole": True})


@pytest.fixture
async def large() -> AsyncIterator[tuple[str, int]]:
    """An admin server with a dump that no socket's buffers hold."""
    server = admin_server(Counted(100_000), lambda: None, _LOOPBACK)
    await server.open()
    yield server.address
    await server.close()


async def test_readers_that_stall_are_cut_off_so_that_others_get_theirs(
    large: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_SEND_S", 0.5)
    stalled = [await _asked(large), await _asked(large)]

    reader, writer = await _asked(large)
    body = await reader.read()
    writer.close()

    assert len(json.loads(body)["list"]) == 100_000
    for stalled_reader, stalled_writer in stalled:
        with contextlib.suppress(ConnectionResetError):
            assert len(await stalled_reader.read()) < len(body)
        stalled_writer.close()


async def _asked(address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which the body of a dump has begun, and few bytes of it are read."""
    reader, writer = await asyncio.open_connection(*address, limit=1024)
    writer.write(b"GET /config_dump HTTP/1.0\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Length: 108000" in head
    return reader, writer


async def test_head_has_the_length_and_no_body() -> None:
    async with client_of(admin_server(Counted(), lambda: None, _LOOPBACK)) as client:
        reply = await client.ask("/config_dump", "HEAD")

    assert (reply.status, reply.content_type, reply.body) == (200, "application/json", b"")
