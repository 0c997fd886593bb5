# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py certs`: the certificates that a proxy has, and for how long."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ztunnel_py.cli.source import entries, json_option, reads, text
from ztunnel_py.cli.table import duration, show, show_json, tabled
from ztunnel_py.config_values import duration_s

if TYPE_CHECKING:
    from ztunnel_py.cli.source import Source

Json = dict[str, Any]


class _Duration(click.ParamType[float]):
    """Seconds of a text such as `6h` or `1m30s`."""

    name = "time"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """See click."""
        try:
            return duration_s(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@reads
@click.option(
    "--expiring",
    type=_Duration(),
    metavar="TIME",
    help="only those that expire within TIME (6h, 30m), or are not there",
)
@click.option("--identity", default="", metavar="TEXT", help="only of identities that contain TEXT")
@json_option
def certs(source: Source, expiring: float | None, identity: str, *, as_json: bool) -> None:
    """Show the certificates of a proxy."""
    found = [one for one in entries(source.dump(), "certificates") if identity in _name(one)]
    now = time.time()
    if expiring is not None:
        found = [one for one in found if remaining_s(one, now) <= expiring]
    if as_json:
        show_json(found)
        return
    columns = {
        "IDENTITY": _name,
        "EXPIRES": lambda one: _expires(one, now),
        "AGE": lambda one: _age(one, now),
        "SERIAL": lambda one: text(_leaf(one), "serialNumber"),
        "ROOTS": lambda one: str(len(entries(one, "rootCerts"))),
        "STATE": lambda one: text(one, "state"),
    }
    show(tabled(columns, found))


def remaining_s(one: Json, now: float) -> float:
    """Seconds until the leaf expires; 0 if there is none."""
    ends = _time(_leaf(one), "expirationTime")
    return 0.0 if ends is None else ends - now


def _name(one: Json) -> str:
    return text(one, "identity")


def _leaf(one: Json) -> Json | None:
    chain = entries(one, "certChain")
    return chain[0] if chain else None


def _time(certificate: Json | None, key: str) -> float | None:
    try:
        return datetime.fromisoformat(text(certificate, key)).timestamp()
    except (ValueError, OverflowError):
        return None


def _expires(one: Json, now: float) -> str:
    if _time(_leaf(one), "expirationTime") is None:
        return ""
    left = remaining_s(one, now)
    return f"in {duration(left)}" if left > 0 else f"{duration(-left)} ago"


def _age(one: Json, now: float) -> str:
    begins = _time(_leaf(one), "validFrom")
    return "" if begins is None else duration(max(now - begins, 0))
