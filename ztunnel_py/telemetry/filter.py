# SPDX-License-Identifier: Apache-2.0
"""Log filters: which target may log at which level.

A filter is a comma-separated list of directives:

    info                    a level for every target
    ztunnel::xds=debug      a level for all targets that begin with this text
    access[{error}]=info    only events that carry these fields
    ztunnel::dns            the target at trace

The longest matching directive alone decides; where none matches, nothing is logged. Levels are
`off error warn info debug trace` in any case, or `0` to `5`; an empty level means error.
Source: spec identity-ops, section E.5; ztunnel src/telemetry.rs.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

ALWAYS = "hickory_server::server=off,"
"""Begins the start-up filter of ztunnel, whatever `RUST_LOG` says."""
DEFAULT = "info"


class Level(enum.IntEnum):
    """Verbosity; the numbers are those that a filter may use."""

    OFF = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4
    TRACE = 5


class _Directive(NamedTuple):
    target: str
    fields: frozenset[str]
    level: Level

    def __str__(self) -> str:
        fields = f"[{{{','.join(sorted(self.fields))}}}]" if self.fields else ""
        scope = f"{self.target}{fields}"
        return f"{scope}={self.level.name.lower()}" if scope else self.level.name.lower()


class Filter:
    """A parsed list of directives."""

    def __init__(self, directives: Collection[_Directive]) -> None:
        unique = {(d.target, d.fields): d for d in directives}  # the last one wins
        self._directives = sorted(
            unique.values(),
            key=lambda d: (len(d.target), len(d.fields), d.target, sorted(d.fields)),
            reverse=True,
        )

    def __str__(self) -> str:
        """Its directives, the most specific first, as `parse` reads them."""
        return ",".join(map(str, self._directives))

    @classmethod
    def parse(cls, text: str) -> Filter:
        """The filter written in `text`.

        Raises:
            ConfigError: a directive is malformed; the message names `RUST_LOG`.
        """
        return cls([_parse_directive(clause) for clause in clauses(text)])

    def level(self, target: str, fields: Collection[str]) -> Level:
        """The most verbose level at which an event with these fields is logged."""
        for directive in self._directives:
            if target.startswith(directive.target) and directive.fields.issubset(fields):
                return directive.level
        return Level.OFF

    def bounds(self, target: str) -> tuple[Level, Level]:
        """The levels at which an event of `target` is logged whatever its fields, and at best.

        They are equal where no directive asks for fields.
        """
        levels = []
        for directive in self._directives:
            if target.startswith(directive.target):
                levels.append(directive.level)
                if not directive.fields:
                    break
        else:
            levels.append(Level.OFF)
        return min(levels), max(levels)


def clauses(text: str) -> Iterator[str]:
    """The directives of a text, between commas; a comma inside `[{..}]` separates fields."""
    rest = text
    while True:
        comma = rest.find(",")
        opened = rest.find("[{")
        if -1 < opened < comma:
            closed = rest.find("}]", opened)
            comma = rest.find(",", closed) if closed > -1 else comma
        if comma < 0:
            yield rest
            return
        yield rest[:comma]
        rest = rest[comma + 1 :]


def _parse_directive(clause: str) -> _Directive:
    left, *levels = clause.split("=")
    if len(levels) > 1:
        raise _malformed(clause, "at most one '='")
    if not levels:
        bare = _parse_level(left)
        if bare is not None:
            return _Directive("", frozenset(), bare)
        return _Directive(left, frozenset(), Level.TRACE)
    target, *field_lists = left.split("[{")
    if len(field_lists) > 1 or (field_lists and not field_lists[0].endswith("}]")):
        raise _malformed(clause, "fields as target[{field,field}]=level")
    level = _parse_level(levels[0])
    if level is None:
        raise _malformed(clause, "a level of off, error, warn, info, debug, trace or 0 to 5")
    names = field_lists[0].removesuffix("}]").split(",") if field_lists else []
    return _Directive(target, frozenset(name for name in names if name), level)


def _parse_level(text: str) -> Level | None:
    if text.isascii() and text.isdigit():
        return Level(int(text)) if int(text) <= Level.TRACE else None
    return Level.ERROR if not text else Level.__members__.get(text.upper())


def _malformed(clause: str, expected: str) -> ConfigError:
    return ConfigError(f"RUST_LOG: directive {clause!r}: expected {expected}")
