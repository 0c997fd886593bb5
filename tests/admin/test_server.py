# SPDX-License-Identifier: Apache-2.0
"""The admin server."""

from __future__ import annotations

from tests.admin.conftest import client_of
from ztunnel_py.admin.server import admin_server

_LOOPBACK = (("127.0.0.1", 0),)


async def test_home_links_the_pages() -> None:
    async with client_of(admin_server(dict, lambda: None, _LOOPBACK)) as client:
        reply = await client.ask("/")

    assert (reply.status, reply.content_type) == (200, "text/html; charset=utf-8")
    assert b'href="config_dump"' in reply.body
    assert b'href="quitquitquit"' in reply.body


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
