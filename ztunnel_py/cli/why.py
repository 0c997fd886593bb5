# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py why`: what happens to a connection, step by step, and what would let it through.

The mesh is that of a running proxy, or, for which no proxy is needed, that of a local state file or
of a saved dump.
"""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import textwrap
import urllib.parse
from typing import TYPE_CHECKING, Any

import click

from ztunnel_py.cli.admin import fetch_json, foreign
from ztunnel_py.cli.failure import Failure
from ztunnel_py.cli.source import admin_option, chosen, dump_option
from ztunnel_py.cli.table import printable, show_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.cli.source import Source
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.state.store import Store

Json = dict[str, Any]

ALLOWED, FAILED, NOT_ALLOWED = 0, 1, 2
"""Exit statuses: encrypted and allowed, no answer, anything else."""
_ENCRYPTED = "encrypted"
_KEYS = {"source", "destination", "outcome", "reason", "fix", "steps"}
_MARKS = {"good": "✓", "bad": "✗", "note": "·"}
_COLOURS = {"✓": "32", "✗": "31", "·": "2"}
_BOLD = "1"
_WIDEST, _NARROWEST = 100, 60
_TITLE = 9
"""Columns of the longest title."""


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT]")
@click.option(
    "--state", default="", metavar="FILE", help="the mesh of a local state file; no proxy"
)
@dump_option
@admin_option
@click.option("--json", "as_json", is_flag=True, help="the answer as JSON")
@click.pass_context
def why(
    context: click.Context,
    source: str,
    destination: str,
    state: str,
    dump: str,
    admin: str,
    *,
    as_json: bool,
) -> int:
    """Explain what happens to a connection.

    And what would let it through, if nothing does. SRC is a workload (namespace/name) or an
    address; DST an address, a hostname, or namespace/name of a workload.

    Exit status: 0 encrypted and allowed, 2 not, 1 no answer.
    """
    asked = chosen(context, admin, dump)
    if state and dump:
        raise click.UsageError("--state and --dump exclude each other")
    if state:
        found = _from_file(state, source, destination)
    elif dump:
        found = _from_dump(asked, source, destination)
    else:
        found = _from_proxy(admin, source, destination)
    if as_json:
        show_json(found)
    else:
        columns = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
        is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(lines(found, columns, is_coloured=is_coloured)))
    return ALLOWED if found["outcome"] == _ENCRYPTED else NOT_ALLOWED


# --- the answer


def _from_file(path: str, src: str, dst: str) -> Json:
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.errors import LocalStateError
    from ztunnel_py.state.store import Store
    from ztunnel_py.xds.local import load

    store = Store()
    try:
        store.apply(load(path).updates)
    except LocalStateError as error:
        raise Failure(str(error).removeprefix("LOCAL_XDS_PATH: ")) from error
    return _explained(store, Settings(), src, dst)


def _from_dump(source: Source, src: str, dst: str) -> Json:
    from ztunnel_py.cli.dumped_state import mesh

    store, settings = mesh(source.dump(), source.file)
    return _explained(store, settings, src, dst)


def _explained(store: Store, settings: Settings, src: str, dst: str) -> Json:
    from ztunnel_py.decide.explain import explain
    from ztunnel_py.errors import UnknownNameError

    try:
        return explain(store, settings, src, dst).tree()
    except UnknownNameError as error:
        raise Failure(str(error)) from error


def _from_proxy(admin: str, src: str, dst: str) -> Json:
    path = f"/why?{urllib.parse.urlencode({'src': src, 'dst': dst})}"
    status, found = fetch_json(admin, path)
    if isinstance(found, dict) and "error" in found:
        raise Failure(printable(str(found["error"])))
    if status != http.client.OK or not isinstance(found, dict) or not found.keys() >= _KEYS:
        raise foreign(admin, "/why", status)
    return found


# --- what is shown


def lines(found: Json, columns: int, *, is_coloured: bool = False) -> Iterator[str]:
    """An explanation as lines of at most `columns`, but for words that are longer."""

    def coloured(text: str, *codes: str) -> str:
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if is_coloured else text

    yield coloured(f"{found['source']} → {found['destination']}", _BOLD)
    yield ""
    for step in found["steps"]:
        mark = "✗" if step["isObstacle"] else "✓"
        head = f"{step['number']:>2} {mark} {step['title']:<{_TITLE}} "
        codes = [_COLOURS["✗"]] if step["isObstacle"] else []
        for line in _wrapped(head, step["text"], columns):
            yield coloured(line, *codes) if codes else line
        for finding in step["findings"]:
            sign = _MARKS[finding["mark"]]
            for line in _wrapped(" " * len(head) + f"{sign} ", finding["text"], columns):
                yield coloured(line, _COLOURS[sign]) if sign != "✓" else line
    yield ""
    is_good = found["outcome"] == _ENCRYPTED
    outcome = "encrypted and allowed" if is_good else found["outcome"]
    said = f"{outcome}: {found['reason']}" if found["reason"] else outcome
    colour = _COLOURS["✓" if is_good else "✗"]
    for line in _wrapped("=> ", said, columns):
        yield coloured(line, _BOLD, colour)
    if found["fix"]:
        for line in _wrapped("fix: ", found["fix"], columns):
            yield coloured(line, _BOLD)


def _wrapped(head: str, text: str, columns: int) -> list[str]:
    """`text` behind `head`, in lines that all begin where it does."""
    return textwrap.wrap(
        text,
        columns,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]
