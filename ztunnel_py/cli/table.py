# SPDX-License-Identifier: Apache-2.0
"""Tables for people: on a terminal they fit its width, elsewhere each row is one whole line."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.table import Table as RichTable

_MANY = 5_000
"""From how many rows on fitting them takes longer than anybody reads."""
_COLOURS = {"Available": "green", "Healthy": "green"} | dict.fromkeys(
    ("Unavailable", "Unhealthy", "Deny", "draining"), "red"
)


class Table(NamedTuple):
    """Columns and rows; an empty cell is a dash."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        """Aligned columns, two spaces between them."""
        lines = [self.head, *(list(map(_cell, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def tabled(columns: Mapping[str, Callable[..., str]], found: Iterable[object]) -> Table:
    """A row for each of `found`."""
    return Table(list(columns), [[show(one) for show in columns.values()] for one in found])


def show(table: Table) -> None:
    """Prints a table."""
    if not sys.stdout.isatty() or len(table.rows) > _MANY:
        click.echo(str(table))
        return
    from rich.console import Console  # which takes a while, and scripts do not need

    Console().print(_rich(table))


def show_json(value: object) -> None:
    """Prints a value for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def watch(make: Callable[[], Table], interval_s: float) -> None:
    """Shows a table anew for ever; ends with KeyboardInterrupt, or with what `make` raises.

    On a terminal it has the screen for itself, which is as before afterwards.
    """
    if not sys.stdout.isatty():
        while True:
            click.echo(f"{make()}\n")
            time.sleep(interval_s)
    from rich.live import Live

    with Live(_rich(make()), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(_rich(make()), refresh=True)


def printable(text: str) -> str:
    """Text from elsewhere in which nothing can steer a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


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


def _cell(text: str) -> str:
    return printable(text) if text else "-"


def _rich(table: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in table.head:
        shown.add_column(name, overflow="fold")
    for row in table.rows:
        cells = map(_cell, row)
        shown.add_row(*(Text(cell, _COLOURS.get(cell.partition(":")[0], "")) for cell in cells))
    return shown
