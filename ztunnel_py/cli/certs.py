# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py certs`: the certificates that a running proxy has, and for how long."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ztunnel_py.cli.live import ADMIN, AdminError, duration, fetch, table
from ztunnel_py.config_values import duration_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Json = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Runs `certs` and returns the exit status: 1 if no proxy answers."""
    options = _parser().parse_args(argv)
    now = time.time()
    try:
        found = [one for one in ask(options.admin) if options.identity in one["identity"]]
    except AdminError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.expiring is not None:
        found = [one for one in found if remaining_s(one, now) <= options.expiring]
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    print(table(list(_COLUMNS), [[show(one, now) for show in _COLUMNS.values()] for one in found]))
    return 0


def ask(admin: str) -> list[Json]:
    """The certificates of `/config_dump` at `host:port`, those of ztunnel as well.

    Raises:
        AdminError: there is no such server, or it shows no certificates.
    """
    status, found = fetch(admin, "/config_dump")
    if status == http.client.OK and isinstance(found, dict):
        certificates = found.get("certificates")
        if isinstance(certificates, list):
            return certificates
    raise AdminError(f"what answers at {admin} is not such a proxy: /config_dump gave {status}")


def remaining_s(one: Json, now: float) -> float:
    """Seconds until the leaf expires; 0 if there is none."""
    chain = one["certChain"]
    return _seconds(chain[0]["expirationTime"]) - now if chain else 0.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ztunnel-py certs", description="Shows the certificates of a running proxy."
    )
    parser.add_argument(
        "--expiring",
        type=duration_s,
        metavar="TIME",
        help="only those that expire within TIME (6h, 30m), or are not there",
    )
    parser.add_argument(
        "--identity", default="", metavar="TEXT", help="only of identities that contain TEXT"
    )
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.add_argument(
        "--admin", default=ADMIN, metavar="HOST:PORT", help=f"the proxy's admin port ({ADMIN})"
    )
    return parser


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _expires(one: Json, now: float) -> str:
    if not one["certChain"]:
        return ""
    left = remaining_s(one, now)
    return f"in {duration(left)}" if left > 0 else f"{duration(-left)} ago"


def _age(one: Json, now: float) -> str:
    chain = one["certChain"]
    return duration(max(now - _seconds(chain[0]["validFrom"]), 0)) if chain else ""


_COLUMNS: dict[str, Callable[[Json, float], str]] = {
    "IDENTITY": lambda one, _: one["identity"],
    "EXPIRES": _expires,
    "AGE": _age,
    "SERIAL": lambda one, _: one["certChain"][0]["serialNumber"] if one["certChain"] else "",
    "ROOTS": lambda one, _: str(len(one["rootCerts"])),
    "STATE": lambda one, _: one["state"],
}
