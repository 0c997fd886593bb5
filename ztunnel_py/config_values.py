# SPDX-License-Identifier: Apache-2.0
"""The grammar of settings: text to value, or `ValueError` that says what is expected.

Strict where ztunnel is strict: `true` and `false` are the only booleans, integers are decimal.
Source: spec identity-ops, section C.1.
"""

from __future__ import annotations

import ipaddress
import math
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_INTEGER = re.compile(r"\+?[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_HEADER_NAME = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*", re.ASCII)
_DURATION_TERM = re.compile(r"\s*(?P<number>[0-9]+)\s*(?P<unit>[^\W\d_]*)\s*(?P<sign>[+*]?)")

_NS_PER_UNIT = {
    ns: names.split()
    for ns, names in (
        (365 * 86_400_000_000_000, "y year years"),
        (30 * 86_400_000_000_000, "mon month months"),
        (7 * 86_400_000_000_000, "w week weeks"),
        (86_400_000_000_000, "d day days"),
        (3_600_000_000_000, "h hr hour hours"),
        (60_000_000_000, "m min minute minutes"),
        (1_000_000_000, "s sec second seconds"),
        (1_000_000, "ms msec millisecond milliseconds"),
        (1_000, "\N{MICRO SIGN}s \N{GREEK SMALL LETTER MU}s us usec microsecond microseconds"),
        (1, "ns nsec nanosecond nanoseconds"),
    )
}
_UNITS = {name: ns for ns, names in _NS_PER_UNIT.items() for name in names} | {"": 1_000_000_000}
_NS_MAX = 2**64 - 1
LOCALHOST = "localhost"


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that is never printed; `value` is for the one who sends it."""

    value: str = field(repr=False)

    def __repr__(self) -> str:
        return "<redacted>"

    __str__ = __repr__


class Bind(NamedTuple):
    """Where a server listens: an IP address, or `localhost` for both loopback addresses."""

    host: str
    port: int

    def addresses(self, *, has_ipv6_loopback: bool) -> tuple[tuple[str, int], ...]:
        """The sockets to bind, as (address, port)."""
        if self.host != LOCALHOST:
            return ((self.host, self.port),)
        hosts = ("127.0.0.1", "::1") if has_ipv6_loopback else ("127.0.0.1",)
        return tuple((host, self.port) for host in hosts)


def text(value: str) -> str:
    """Any text."""
    return value


def boolean(value: str) -> bool:
    """`true` or `false`."""
    if value not in ("true", "false"):
        raise ValueError("expected true or false")
    return value == "true"


def is_true(value: str) -> bool:
    """Exactly `true`; any other text is false and no error."""
    return value == "true"


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser of a closed set of words."""

    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value

    return parse


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    """A parser of decimal numbers in a range."""

    def parse(value: str) -> int:
        if not _INTEGER.fullmatch(value) or not lowest <= int(value) <= highest:
            raise ValueError(f"expected a number from {lowest} to {highest}")
        return int(value)

    return parse


def duration_s(value: str) -> float:
    """Seconds of a duration: `90s`, `1m30s`, `3m + 29ms`, `1m*10`; a bare number is seconds.

    Signs may not be mixed. A product multiplies the seconds of its factors, so `1m*10ms` is 0.6 s.
    """
    expected = ValueError("expected a duration such as 90s, 1m30s or 500ms")
    terms, signs, position = [], set(), 0
    while position < len(value):
        term = _DURATION_TERM.match(value, position)
        if term is None or term["unit"].lower() not in _UNITS:
            raise expected
        terms.append(int(term["number"]) * _UNITS[term["unit"].lower()])
        position = term.end()
        if position < len(value):
            signs.add(term["sign"] or "+")
        elif term["sign"]:
            raise expected
    if not terms or len(signs) > 1:
        raise expected
    total = math.prod(terms) // 10 ** (9 * (len(terms) - 1)) if signs == {"*"} else sum(terms)
    if total > _NS_MAX:
        raise expected
    return total / 1e9


def cpus(value: str) -> int:
    """CPUs of a Kubernetes quantity (`2`, `1.5`, `500m`), rounded up."""
    number = value.removesuffix("m")
    if not _DECIMAL.fullmatch(number):
        raise ValueError("expected a CPU quantity such as 2, 1.5 or 500m")
    count = float(number) / (1000 if number != value else 1)
    if not 0 < count < math.inf:
        raise ValueError("expected a CPU quantity above 0")
    return math.ceil(count)


def threads(value: str) -> Callable[[int], int]:
    """How many threads for a number of CPUs: `4`, `0` (all CPUs) or `25%`, rounded up."""
    if value.endswith("%"):
        if not _DECIMAL.fullmatch(value[:-1]) or not 0 < float(value[:-1]) <= 100:
            raise ValueError("expected a percentage above 0% and up to 100%")
        share = float(value[:-1]) / 100
        return lambda count: max(1, math.ceil(count * share))
    number = integer(0, 65_535)(value)
    return lambda count: number or count


def url(value: str) -> str:
    """The address of a server, with `https://` if it names no scheme."""
    whole = value if "://" in value else f"https://{value}"
    parts = urllib.parse.urlsplit(whole)
    if not parts.hostname or not value.isprintable() or " " in value:
        raise ValueError("expected host:port or a URL")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("expected a port from 0 to 65535") from None
    return whole


def unix_socket(value: str) -> Path:
    """The path of a socket: `unix:///path` or `/path`."""
    path = Path(value.removeprefix("unix://").removeprefix("unix:"))
    if not path.is_absolute():
        raise ValueError("expected unix:///path")
    return path


def bind(value: str) -> Bind:
    """`localhost:port`, `ip:port` or `[v6]:port`."""
    host, _, port = value.rpartition(":")
    try:
        if host != LOCALHOST:
            is_bracketed = host.startswith("[") and host.endswith("]")
            host = str(
                ipaddress.IPv6Address(host[1:-1]) if is_bracketed else ipaddress.IPv4Address(host)
            )
        return Bind(host, integer(0, 65_535)(port))
    except ValueError:
        raise ValueError("expected localhost:port or ip:port") from None


def workload_name(value: str) -> tuple[str, str, str]:
    """Namespace, name and service account of `namespace/name/service-account`."""
    parts = value.split("/", 2)
    if len(parts) != 3:
        raise ValueError("expected namespace/name/service-account")
    return parts[0], parts[1], parts[2]


def header(name: str, value: str) -> tuple[str, Secret]:
    """A request header; `value` does not appear in the error.

    Raises:
        ValueError: the name is not that of a text header, or the value is not printable ASCII.
    """
    if not _HEADER_NAME.fullmatch(name) or name.lower().endswith("-bin"):
        raise ValueError("expected a header name, not ending in -bin, after the prefix")
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError("expected a printable ASCII value")
    return name.lower(), Secret(value)
