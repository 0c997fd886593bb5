# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py connections` and `tunnels`: what lives in a running proxy, says its admin port."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Json = dict[str, Any]

ADMIN = "localhost:15000"
"""Where a proxy shows itself, unless told otherwise."""
_TIMEOUT_S = 10.0


class AdminError(Exception):
    """The proxy did not answer; the message is for the operator."""


def main(command: str, argv: Sequence[str]) -> int:
    """Runs `connections` or `tunnels` and returns the exit status: 1 if no proxy answers."""
    options = _parser(command).parse_args(argv)
    try:
        found = ask(options.admin, f"/{command}")
    except AdminError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = [one for one in found if options.workload in one["workload"]]
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    columns = _CONNECTION if command == "connections" else _TUNNEL
    print(table(list(columns), [[show(one) for show in columns.values()] for one in found]))
    return 0


def ask(admin: str, path: str) -> list[Json]:
    """The list at a path of the admin server at `host:port`.

    Raises:
        AdminError: there is no such server, or it does not know the path.
    """
    status, found = fetch(admin, path)
    if status == http.client.OK and isinstance(found, list):
        return found
    raise AdminError(f"what answers at {admin} is not such a proxy: {path} gave {status}")


def fetch(admin: str, path: str) -> tuple[int, Any]:
    """The status and the JSON at a path of the admin server at `host:port`; None if it is none.

    Raises:
        AdminError: there is no such server.
    """
    connection = None
    try:
        connection = http.client.HTTPConnection(admin, timeout=_TIMEOUT_S)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, OverflowError, http.client.HTTPException) as error:  # Overflow: of the port
        raise AdminError(
            f"no proxy answers at {admin}: {error or type(error).__name__}; is it running, and in "
            "this network namespace? --admin names another address"
        ) from error
    finally:
        if connection is not None:
            connection.close()
    try:
        return response.status, json.loads(body)
    except ValueError:
        return response.status, None


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"ztunnel-py {command}", description=f"Shows the {command} of a running proxy."
    )
    parser.add_argument(
        "--workload", default="", metavar="TEXT", help="only of workloads whose name contains TEXT"
    )
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.add_argument(
        "--admin", default=ADMIN, metavar="HOST:PORT", help=f"the proxy's admin port ({ADMIN})"
    )
    return parser


# --- what is shown


def duration(seconds: float) -> str:
    """Its two greatest units: `0.4s`, `12s`, `3m12s`, `2h05m`, `3d04h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, name, smaller, smaller_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit}{name}{whole % unit // smaller:02}{smaller_name}"
    return f"{whole}s"


def size(count: int) -> str:
    """Bytes: `512 B`, `1.2 MiB`."""
    if abs(count) < 1024:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for greater in ("MiB", "GiB", "TiB"):
        if abs(value) >= 1023.95:
            value, unit = value / 1024, greater
    return f"{value:.1f} {unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; an empty cell is a dash."""
    lines = [head, *([cell or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _way(one: Json) -> str:
    actual = one["actualDst"]
    asked: str = one["originalDst"]
    return asked if actual in (None, asked) else f"{asked} -> {actual}"


def _stalls(one: Json) -> str:
    """By whom, for how long, and what waits."""
    found = one["stalled"].items()
    return ", ".join(f"{who} {_stall(stall)}" for who, stall in found if stall is not None)


def _stall(stall: Json | None) -> str:
    return "" if stall is None else f"{duration(stall['seconds'])} {size(stall['bytes'])}"


_CONNECTION: dict[str, Callable[[Json], str]] = {
    "ID": lambda one: one["id"],
    "WORKLOAD": lambda one: one["workload"],
    "DIRECTION": lambda one: one["direction"],
    "SOURCE": lambda one: one["src"],
    "DESTINATION": _way,
    "PROTOCOL": lambda one: one["protocol"] or "",
    "AGE": lambda one: duration(one["ageSeconds"]),
    "UP": lambda one: size(one["upstreamBytes"]),
    "DOWN": lambda one: size(one["downstreamBytes"]),
    "STATE": lambda one: one["state"] or "",
    "TUNNEL": lambda one: one["tunnel"] or "",
    "STALLED BY": _stalls,
    "CONNECTION ID": lambda one: one["connectionId"],
}

_TUNNEL: dict[str, Callable[[Json], str]] = {
    "ID": lambda one: one["id"],
    "WORKLOAD": lambda one: one["workload"],
    "DIRECTION": lambda one: one["direction"],
    "REMOTE": lambda one: one["remote"],
    "IDENTITY": lambda one: one["identity"] or "",
    "STREAMS": lambda one: str(one["streams"]),
    "WORKER": lambda one: str(one["worker"]),
    "AGE": lambda one: duration(one["ageSeconds"]),
    "RECEIVED": lambda one: size(one["receivedBytes"]),
    "SENT": lambda one: size(one["sentBytes"]),
    "WINDOW IN": lambda one: size(one["receiveWindow"]),
    "WINDOW OUT": lambda one: size(one["sendWindow"]),
    "STALLED": lambda one: _stall(one["stalled"]),
    "STATE": lambda one: "draining" if one["draining"] else "open",
}
