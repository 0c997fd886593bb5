# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py log`: shows the log levels of a running proxy, or changes them."""

from __future__ import annotations

import http.client
import urllib.parse

import click

from ztunnel_py.cli.admin import fetch, foreign
from ztunnel_py.cli.failure import Failure
from ztunnel_py.cli.source import admin_option, json_option
from ztunnel_py.cli.table import printable, show_json

_ANSWER = "current log level is "


@click.command()
@click.argument("level", default="")
@click.option("--reset", "is_reset", is_flag=True, help="first go back to the levels of its start")
@admin_option
@json_option
def log(level: str, admin: str, *, is_reset: bool, as_json: bool) -> None:
    """Show or change a proxy's log levels.

    LEVEL is off, error, warn, info, debug or trace for everything that has no level of its own, or
    TARGET=LEVEL, or several of both with commas between them: access=debug,info
    """
    query = {"level": level} if level else {}
    if is_reset:
        query["reset"] = "true"
    path = f"/logging?{urllib.parse.urlencode(query)}" if query else "/logging"
    status, body = fetch(admin, path, "POST")
    lines = body[:100_000].decode("utf-8", "replace").splitlines() or [""]
    if status == http.client.BAD_REQUEST and "level" in lines[0]:
        raise Failure(f"{printable(lines[0])}; expected LEVEL or TARGET=LEVEL, see --help")
    if status != http.client.OK or not lines[0].startswith(_ANSWER):
        raise foreign(admin, "/logging", status)
    shown = printable(lines[0].removeprefix(_ANSWER))
    if as_json:
        show_json({"level": shown})
    else:
        click.echo(shown)
