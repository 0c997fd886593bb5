# SPDX-License-Identifier: Apache-2.0
"""The admin server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.admin.conftest import client_of
from ztunnel_py.admin.server import admin_server
from ztunnel_py.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOPBACK = (("127.0.0.1", 0),)


async def test_home_links_the_pages() -> None:
    async with client_of(admin_server(dict, lambda: None, _LOOPBACK)) as client:
        reply = await client.ask("/")

    assert (reply.status, reply.content_type) == (200, "text/html; charset=utf-8")
    assert b'href="config_dump"' in reply.body
    assert b'href="quitquitquit"' in reply.body
    assert b'href="why"' in reply.body
    assert b'href="logging"' in reply.body


async def test_dump_is_indented_json_with_sorted_keys() -> None:
    server = admin_server(lambda: {"b": [1], "a": {"d": None, "c": "ü"}}, lambda: None, _LOOPBACK)
    async with client_of(server) as client:
        reply = await client.ask("/config_dump")

    assert (reply.status, reply.content_type) == (200, "application/json")
    assert reply.body.decode() == (
        '{\n  "a": {\n    "c": "ü",\n    "d": null\n  },\n  "b": [\n    1\n  ]\n}'
    )


async def test_quitquitquit_begins_the_shutdown_on_post_only() -> None:
    calls: list[str] = []
    server = admin_server(dict, lambda: calls.append("down"), _LOOPBACK)
    async with client_of(server) as client:
        get = await client.ask("/quitquitquit")
        calls_before = list(calls)
        post = await client.ask("/quitquitquit", "POST")

    assert (get.status, get.body, calls_before) == (405, b"", [])
    assert (post.status, post.content_type, post.body) == (200, "text/plain", b"shutdown now\n")
    assert calls == ["down"]


async def test_why_gives_source_and_destination_and_shows_what_comes_of_them() -> None:
    def why(src: str, dst: str) -> Callable[[], object]:
        return lambda: {"from": src, "to": dst}

    async with client_of(admin_server(dict, lambda: None, _LOOPBACK, why=why)) as client:
        reply = await client.ask("/why?src=shop/cart-0&dst=%5Bfd00::1%5D:80")

    assert (reply.status, reply.content_type) == (200, "application/json")
    assert json.loads(reply.body) == {"from": "shop/cart-0", "to": "[fd00::1]:80"}


async def test_why_answers_404_for_a_name_that_nobody_has() -> None:
    def why(src: str, _: str) -> Callable[[], object]:
        raise UnknownNameError(f"no workload {src!r}", ["shop/cart-0"])

    async with client_of(admin_server(dict, lambda: None, _LOOPBACK, why=why)) as client:
        reply = await client.ask("/why?src=cart&dst=prices")

    assert reply.status == 404
    assert json.loads(reply.body) == {"error": "no workload 'cart'; did you mean shop/cart-0?"}


@pytest.mark.parametrize("query", ["", "?src=a", "?dst=a", "?src=&dst=a"])
async def test_why_needs_both_ends(query: str) -> None:
    def why(_: str, __: str) -> Callable[[], object]:
        raise AssertionError("there is nothing to ask")

    async with client_of(admin_server(dict, lambda: None, _LOOPBACK, why=why)) as client:
        reply = await client.ask(f"/why{query}")

    assert (reply.status, json.loads(reply.body)) == (
        400,
        {"error": "expected /why?src=..&dst=.."},
    )
