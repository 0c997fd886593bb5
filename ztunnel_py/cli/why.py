# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py why`: what happens to a connection, step by step, and what would let it through.

The mesh is that of a local state file, for which no proxy is needed, or that of a running proxy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
import urllib.parse
from typing import TYPE_CHECKING, Any

from ztunnel_py.cli.live import ADMIN, AdminError, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Json = dict[str, Any]

ALLOWED, FAILED, NOT_ALLOWED = 0, 1, 2
"""Exit statuses: encrypted and allowed, no answer, anything else."""
_ENCRYPTED = "encrypted"
_MARKS = {"good": "✓", "bad": "✗", "note": "·"}
_COLOURS = {"✓": "32", "✗": "31", "·": "2"}
_BOLD = "1"
_WIDEST, _NARROWEST = 100, 60
_TITLE = 9
"""Columns of the longest title."""


class WhyError(Exception):
    """There is no answer; the message is for the operator."""


def main(argv: Sequence[str]) -> int:
    """Runs `why`; returns 0 if the connection is encrypted and allowed, 2 if not, 1 on errors."""
    options = _parser().parse_args(argv)
    try:
        found = (
            _from_file(options.state, options.source, options.destination)
            if options.state
            else _from_proxy(options.admin, options.source, options.destination)
        )
    except (WhyError, AdminError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        columns = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
        is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(lines(found, columns, is_coloured=is_coloured)))
    return ALLOWED if found["outcome"] == _ENCRYPTED else NOT_ALLOWED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ztunnel-py why",
        description="Explains what happens to a connection, and what would let it through.",
        epilog="exit status: 0 encrypted and allowed, 2 not, 1 no answer",
    )
    parser.add_argument("source", metavar="SRC", help="a workload (namespace/name) or an address")
    parser.add_argument(
        "destination",
        metavar="DST[:PORT]",
        help="an address, a hostname, or namespace/name of a workload",
    )
    parser.add_argument(
        "--state", default="", metavar="FILE", help="the mesh of a local state file; no proxy"
    )
    parser.add_argument(
        "--admin", default=ADMIN, metavar="HOST:PORT", help=f"a proxy's admin port ({ADMIN})"
    )
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    return parser


# --- the answer


def _from_file(path: str, src: str, dst: str) -> Json:
    from ztunnel_py.decide.explain import explain
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.errors import LocalStateError, UnknownNameError
    from ztunnel_py.state.store import Store
    from ztunnel_py.xds.local import load

    store = Store()
    try:
        store.apply(load(path).updates)
        return explain(store, Settings(), src, dst).tree()
    except LocalStateError as error:
        raise WhyError(str(error).removeprefix("LOCAL_XDS_PATH: ")) from error
    except UnknownNameError as error:
        raise WhyError(str(error)) from error


def _from_proxy(admin: str, src: str, dst: str) -> Json:
    path = f"/why?{urllib.parse.urlencode({'src': src, 'dst': dst})}"
    status, found = fetch(admin, path)
    if isinstance(found, dict) and "error" in found:
        raise WhyError(str(found["error"]))
    if status != 200 or not isinstance(found, dict) or "steps" not in found:
        raise AdminError(f"what answers at {admin} is not such a proxy: /why gave {status}")
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
