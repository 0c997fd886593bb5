# SPDX-License-Identifier: Apache-2.0
"""What the commands that show something look at: a running proxy, or a saved `/config_dump`.

Both may be ours or ztunnel's. What is missing or of another type in a dump is shown as absent.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ztunnel_py.cli.admin import ADMIN, ANSWER_MAX, fetch_json, foreign, parsed
from ztunnel_py.cli.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

Json = dict[str, Any]
C = TypeVar("C", bound="Callable[..., Any]")

PATH = "/config_dump"

admin_option = click.option(
    "--admin", default=ADMIN, show_default=True, metavar="HOST:PORT", help="a proxy's admin port"
)
dump_option = click.option(
    "--dump", default="", metavar="FILE", help="a saved dump in place of a proxy; - is standard in"
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="everything that is known, as JSON"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where to look."""

    admin: str
    file: str = ""
    """A saved dump; empty: ask `admin`."""

    def dump(self) -> Json:
        """The object of `/config_dump`.

        Raises:
            Failure: there is none; the message says why.
        """
        if self.file:
            return load(self.file)
        status, found = fetch_json(self.admin, PATH)
        if status != 200 or not is_dump(found):
            raise foreign(self.admin, PATH, status)
        return dict(found)


def reads(command: C) -> C:
    """Adds `--admin` and `--dump`, and gives the command what they say as `source`."""

    @functools.wraps(command)
    def with_source(*, admin: str, dump: str, **options: object) -> object:
        source = chosen(click.get_current_context(), admin, dump)
        return command(source=source, **options)

    return admin_option(dump_option(with_source))  # type: ignore[return-value] # takes others


def chosen(context: click.Context, admin: str, dump: str) -> Source:
    """What `--admin` and `--dump` say together."""
    if dump and context.get_parameter_source("admin") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--admin and --dump exclude each other")
    return Source(admin, dump)


def load(path: str) -> Json:
    """The dump in a file.

    Raises:
        Failure: it is unreadable, too long, or no dump.
    """
    try:
        text = _read(sys.stdin.buffer) if path == "-" else _open(path)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error
    if len(text) > ANSWER_MAX:
        raise Failure(f"{path} is longer than {ANSWER_MAX} bytes: no dump is that long")
    found = parsed(text)
    if not is_dump(found):
        raise Failure(f"{path} is no dump: expected the JSON object that /config_dump gives")
    return dict(found)


def _open(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return _read(file)


def _read(file: BinaryIO) -> bytes:
    return file.read(ANSWER_MAX + 1)


def is_dump(value: object) -> bool:
    """It has at least one of the lists that all versions have."""
    return isinstance(value, dict) and any(
        isinstance(value.get(key), list | dict) for key in ("workloads", "services", "certificates")
    )


def entries(dump: Json, key: str) -> list[Json]:
    """The objects of a list, which old versions write as a map."""
    value = dump.get(key)
    found = list(value.values()) if isinstance(value, dict) else value
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def at(value: object, *path: str) -> Any:  # noqa: ANN401 - JSON
    """What is at the end of a path of keys, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def text(value: object, *path: str) -> str:
    """The same as text; empty if there is none."""
    found = at(value, *path)
    return "" if found is None else str(found)


def texts(value: object, *path: str) -> list[str]:
    """The elements of the list there, as text."""
    found = at(value, *path)
    return [str(one) for one in found] if isinstance(found, list) else []
