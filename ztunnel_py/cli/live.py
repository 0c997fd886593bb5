# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py connections` and `tunnels`: what lives in a proxy.

`/connections` and `/tunnels` are ours. Of ztunnel, and of a saved dump, the connections are those
in `workloadState`, which tells less of them.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Any

import click

from ztunnel_py.cli.admin import fetch_json, foreign
from ztunnel_py.cli.source import admin_option, at, entries, json_option, reads, text
from ztunnel_py.cli.table import duration, show, show_json, size, tabled, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.cli.source import Source
    from ztunnel_py.cli.table import Table

Json = dict[str, Any]

_workload = click.option(
    "--workload", default="", metavar="TEXT", help="only of workloads whose name contains TEXT"
)


@click.command()
@reads
@_workload
@click.option("-w", "--watch", "is_watched", is_flag=True, help="anew every few seconds")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="between two looks of --watch",
)
@json_option
def connections(
    source: Source, workload: str, interval: float, *, is_watched: bool, as_json: bool
) -> None:
    """Show what is open in a proxy."""

    def found() -> list[Json]:
        listed = _dumped(source.dump()) if source.file else _listed(source)
        return [one for one in listed if workload in text(one, "workload")]

    if is_watched:
        if source.file or as_json:
            raise click.UsageError("--watch shows a table of a running proxy")
        watch(lambda: _table(found()), interval)
    elif as_json:
        show_json(found())
    else:
        show(_table(found()))


@click.command()
@admin_option
@_workload
@json_option
def tunnels(admin: str, workload: str, *, as_json: bool) -> None:
    """Show the HBONE connections of a proxy."""
    status, found = fetch_json(admin, "/tunnels")
    if status != http.client.OK or not _is_list(found, _TUNNEL):
        raise foreign(admin, "/tunnels", status)
    found = [one for one in found if workload in one["workload"]]
    if as_json:
        show_json(found)
    else:
        show(tabled(_TUNNEL, found))


# --- what is found


def _listed(source: Source) -> list[Json]:
    status, found = fetch_json(source.admin, "/connections")
    if status == http.client.OK and _is_list(found, _CONNECTION):
        return list(found)
    if status == http.client.NOT_FOUND:
        return _dumped(source.dump())
    raise foreign(source.admin, "/connections", status)


def _dumped(dump: Json) -> list[Json]:
    """The connections of `workloadState`, in the order of its pods' names."""
    found = []
    for pod in sorted(entries(dump, "workloadState"), key=lambda pod: text(pod, "info", "name")):
        name = f"{text(pod, 'info', 'namespace')}/{text(pod, 'info', 'name')}"
        for direction in ("inbound", "outbound"):
            where = {"workload": name, "direction": direction}
            found += [where | one for one in entries(at(pod, "connections") or {}, direction)]
    return found


def _is_list(value: object, columns: dict[str, Callable[[Json], str]]) -> bool:
    """A list of what the columns can show."""
    if not isinstance(value, list):
        return False
    try:
        return all(column(one) is not None for one in value for column in columns.values())
    except (TypeError, LookupError, AttributeError, ValueError):
        return False


# --- what is shown


def _table(found: list[Json]) -> Table:
    is_ours = all("id" in one for one in found)
    return tabled(_CONNECTION if is_ours else _DUMPED, found)


def _way(one: Json) -> str:
    actual, asked = text(one, "actualDst"), text(one, "originalDst")
    return asked if actual in ("", asked) else f"{asked or '-'} -> {actual}"


def _stalls(one: Json) -> str:
    """By whom, for how long, and what waits."""
    found = one["stalled"].items()
    return ", ".join(f"{who} {_stall(stall)}" for who, stall in found if stall is not None)


def _stall(stall: Json | None) -> str:
    return "" if stall is None else f"{duration(stall['seconds'])} {size(stall['bytes'])}"


_DUMPED: dict[str, Callable[[Json], str]] = {
    "WORKLOAD": lambda one: text(one, "workload"),
    "DIRECTION": lambda one: text(one, "direction"),
    "SOURCE": lambda one: text(one, "src"),
    "DESTINATION": _way,
    "PROTOCOL": lambda one: text(one, "protocol"),
}

_CONNECTION: dict[str, Callable[[Json], str]] = {
    "ID": lambda one: str(one["id"]),
    **_DUMPED,
    "AGE": lambda one: duration(one["ageSeconds"]),
    "UP": lambda one: size(one["upstreamBytes"]),
    "DOWN": lambda one: size(one["downstreamBytes"]),
    "STATE": lambda one: text(one, "state"),
    "TUNNEL": lambda one: text(one, "tunnel"),
    "STALLED BY": _stalls,
    "CONNECTION ID": lambda one: one["connectionId"],
}

_TUNNEL: dict[str, Callable[[Json], str]] = {
    "ID": lambda one: str(one["id"]),
    "WORKLOAD": lambda one: str(one["workload"]),
    "DIRECTION": lambda one: text(one, "direction"),
    "REMOTE": lambda one: text(one, "remote"),
    "IDENTITY": lambda one: text(one, "identity"),
    "STREAMS": lambda one: text(one, "streams"),
    "WORKER": lambda one: text(one, "worker"),
    "AGE": lambda one: duration(one["ageSeconds"]),
    "RECEIVED": lambda one: size(one["receivedBytes"]),
    "SENT": lambda one: size(one["sentBytes"]),
    "WINDOW IN": lambda one: size(one["receiveWindow"]),
    "WINDOW OUT": lambda one: size(one["sendWindow"]),
    "STALLED": lambda one: _stall(one["stalled"]),
    "STATE": lambda one: "draining" if one["draining"] else "open",
}
