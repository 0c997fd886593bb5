# SPDX-License-Identifier: Apache-2.0
"""The admin server on loopback port 15000: what an operator sees and does.

    /               a page that lists the others
    /config_dump    everything known, as JSON
    /connections    what is open, as JSON
    /tunnels        HBONE connections, as JSON
    /why            what happens to a connection from `?src=` to `&dst=`, as JSON
    /logging        POST shows the log levels, and changes them with `?level=` or `?reset`
    /quitquitquit   POST ends the program as SIGTERM does
    /debug/pprof/   profiles, see pprof.py

Source: spec identity-ops, section D.2; ztunnel src/admin.rs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ztunnel_py.admin.http import NOT_ALLOWED, NOT_FOUND, Answer, HttpServer
from ztunnel_py.admin.json_text import to_json
from ztunnel_py.admin.live import dump_connections, dump_tunnels
from ztunnel_py.admin.log_level import logging
from ztunnel_py.admin.pprof import Profiles
from ztunnel_py.admin.rendering import Rendering
from ztunnel_py.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ztunnel_py.admin.http import Handler, Request
    from ztunnel_py.dataplane.abc import ConnView, TunnelView

_PAGES = {
    "config_dump": "the configuration and everything known, as JSON",
    "connections": "what is open, as JSON",
    "tunnels": "HBONE connections, as JSON",
    "why": "what happens to a connection from ?src= to &amp;dst=, as JSON",
    "logging": "show the log levels, or change them with ?level= or ?reset (POST)",
    "quitquitquit": "end the program (POST)",
    "debug/pprof/profile": "processor time of ?seconds=, for pprof",
    "debug/pprof/heap": "memory, for pprof",
}
_JSON = "application/json"
_ROWS = "".join(f'<tr><td><a href="{p}">{p}</a></td><td>{t}</td></tr>' for p, t in _PAGES.items())
_HOME = f"<!DOCTYPE html><title>ztunnel-py</title><h1>ztunnel-py</h1><table>{_ROWS}</table>\n"


def admin_server(
    dump: Callable[[], Mapping[str, object]],
    shut_down: Callable[[], object],
    addresses: Sequence[tuple[str, int]],
    connections: Callable[[], Iterable[ConnView]] = list,
    tunnels: Callable[[], Iterable[TunnelView]] = list,
    why: Callable[[str, str], Callable[[], object]] | None = None,
    log_changed: Callable[[], object] = lambda: None,
) -> HttpServer:
    """The server.

    Args:
        dump: makes the object of `/config_dump`, see `json_text`; runs on the event loop.
        shut_down: begins a graceful shutdown and returns at once.
        addresses: (IP address, port) pairs, loopback only.
        connections: what is open, for `/connections`.
        tunnels: HBONE connections, for `/tunnels`.
        why: for `/why`; called with source and destination on the event loop, where it takes what
            it needs of the state. What it returns makes the object, in a thread, or raises
            UnknownNameError.
        log_changed: called when another log filter is in force.
    """

    def home(_: Request) -> Answer:
        return Answer(200, _HOME, "text/html; charset=utf-8")

    def page(found: Callable[[], object]) -> Handler:
        rendering = Rendering(found)
        return lambda _: Answer(200, rendering.shared, _JSON)

    async def explanation(request: Request) -> Answer:
        src, dst = request.query.get("src"), request.query.get("dst")
        if why is None:
            return NOT_FOUND
        if not src or not dst:
            return Answer(400, to_json({"error": "expected /why?src=..&dst=.."}), _JSON)
        try:
            return Answer(200, to_json(await asyncio.to_thread(why(src, dst))), _JSON)
        except UnknownNameError as error:
            return Answer(404, to_json({"error": str(error)}), _JSON)

    def quitquitquit(request: Request) -> Answer:
        if request.method != "POST":
            return NOT_ALLOWED
        shut_down()
        return Answer(200, "shutdown now\n")

    profiles = Profiles()
    pages: dict[str, Handler] = {
        "/": home,
        "/config_dump": page(dump),
        "/connections": page(lambda: dump_connections(connections())),
        "/tunnels": page(lambda: dump_tunnels(tunnels())),
        "/why": explanation,
        "/logging": lambda request: logging(request, log_changed),
        "/quitquitquit": quitquitquit,
        **profiles.pages(),
    }
    return HttpServer("admin", addresses, pages, profiles.stop)
