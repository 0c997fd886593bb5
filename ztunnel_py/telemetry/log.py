# SPDX-License-Identifier: Apache-2.0
"""Log lines in ztunnel's two forms, tab-separated and JSON.

`logger(target)` is called once per module; `configure` once per process, at the very start. Before
that, and after `close`, lines go to standard error in the plain form at level info.

Targets are ztunnel's module names (`ztunnel::proxy`, `ztunnel::state` ..; `access`), so that the
filters operators already have keep working. Source: spec identity-ops, sections E.3 to E.5.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from ztunnel_py.errors import ConfigError
from ztunnel_py.telemetry.filter import ALWAYS, DEFAULT, Filter, Level
from ztunnel_py.telemetry.writer import FAILED, FULL, LIMIT, LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_PREFIX = "ztunnel::"
_STDERR = 2
_FILTER_MAX = 64 * 1024
"""Characters of a filter that grows while the program runs."""
_ERROR, _WARN, _INFO, _DEBUG, _TRACE = map(int, list(Level)[1:])
_NAMES = [level.name.lower() for level in Level]
_JSON = {str, int, bool, float}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Display:
    """A value that the plain form writes without quotes: an address, an identity."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return str(self._value)


class Group:
    """Fields that many lines share, so that their text is made once; its own name is not shown."""

    __slots__ = ("fields", "plain")

    def __init__(self, fields: Mapping[str, object]) -> None:
        self.fields: Final = fields
        self.plain: Final = plain(fields)


class Logger:
    """Logs under one target. Get it from `logger`.

    Strings are quoted in the plain form; numbers, booleans and `Display` values are not; fields
    that are None are left out.
    """

    __slots__ = ("_at_best", "_scope", "_surely", "target")

    def __init__(self, target: str) -> None:
        self.target: Final = target
        self._scope = target.removeprefix(_PREFIX)
        self.refresh()

    def enabled(self, level: Level, fields: Collection[str] | None = None) -> bool:
        """Whether an event with these fields is written, or one with any; saves making it."""
        if fields is None:
            return level <= self._at_best
        return self._enabled(level, fields)

    def error(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """Something failed that an operator has to know."""
        if self._at_best >= _ERROR:
            self._log(_ERROR, message, fields or {})

    def warn(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """Something is wrong, and service goes on."""
        if self._at_best >= _WARN:
            self._log(_WARN, message, fields or {})

    def info(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """Ordinary life."""
        if self._at_best >= _INFO:
            self._log(_INFO, message, fields or {})

    def debug(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """For somebody who follows one connection."""
        if self._at_best >= _DEBUG:
            self._log(_DEBUG, message, fields or {})

    def trace(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """For somebody who debugs the proxy."""
        if self._at_best >= _TRACE:
            self._log(_TRACE, message, fields or {})

    def say(self, level: str, message: str, fields: Mapping[str, object]) -> bool:
        """Logs at a level by its name; whether that was written."""
        return self._log(Level[level.upper()], message, fields)

    def head(self, level: Level, message: str) -> str | None:
        """How a plain line of now begins, up to its fields, for who has many of one kind to write.

        None if the log is in another form, or the filter has to see each line's fields.
        """
        if _ROOT.json or level > self._surely:
            return None
        return f"{_ROOT.clock()}\t{_NAMES[level]}\t{self._scope}\t{message}\t"

    def write(self, lines: Sequence[bytes]) -> None:
        """Writes finished lines, each a head, `plain` fields and a newline."""
        _ROOT.write(lines)

    def room(self) -> int:
        """How many lines may be written now, by who can keep them for later."""
        return _ROOT.writer.room() if _ROOT.writer is not None else LIMIT

    def refresh(self) -> None:
        """Takes over the process's filter."""
        surely, at_best = _ROOT.filter.bounds(self.target)
        self._surely, self._at_best = int(surely), int(at_best)

    def _enabled(self, level: int, fields: Collection[str]) -> bool:
        return level <= self._surely or (
            level <= self._at_best and level <= _ROOT.filter.level(self.target, fields)
        )

    def _log(self, level: int, message: str, fields: Mapping[str, object]) -> bool:
        if level > self._surely and not self._enabled(level, _names(fields)):
            return False
        if _ROOT.json:
            line = _json_line(_ROOT.clock(), _NAMES[level], self.target, message, fields)
        else:
            line = _plain_line(_ROOT.clock(), _NAMES[level], self._scope, message, fields)
        _ROOT.write((encoded(line),))
        return True


class _Clock:
    """The time of day as the log writes it; the date part is made once per second."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        self._second = (-1, "")

    def __call__(self) -> str:
        seconds, ns = divmod(time.time_ns(), 1_000_000_000)
        known, text = self._second
        if known != seconds:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            self._second = (seconds, text)
        return f"{text}.{ns // 1000:06d}Z"


class _Root:
    """The process's log. The one mutable global here: a log line must be possible anywhere."""

    __slots__ = ("clock", "filter", "json", "loggers", "lost", "start_filter", "writer")

    def __init__(self) -> None:
        self.lost = Counter({FULL: 0, FAILED: 0})
        self.clock: Callable[[], str] = _Clock()
        self.loggers: dict[str, Logger] = {}
        self.apply(Filter.parse(DEFAULT), is_json=False, writer=None)

    def apply(self, log_filter: Filter, *, is_json: bool, writer: LineWriter | None) -> None:
        self.filter = self.start_filter = log_filter
        self.json = is_json
        self.writer = writer

    def write(self, lines: Sequence[bytes]) -> None:
        n_put = 0 if self.writer is None else self.writer.put_all(lines)
        for line in lines[n_put:]:
            with contextlib.suppress(OSError):
                os.write(_STDERR, line)


_ROOT: Final = _Root()


def logger(target: str) -> Logger:
    """The logger of `target`, the same one each time."""
    found = _ROOT.loggers.get(target)
    if found is None:
        found = _ROOT.loggers[target] = Logger(target)
    return found


def configure(filter_text: str = DEFAULT, *, is_json: bool = False, fd: int = 1) -> None:
    """Sends lines that pass the filter to `fd`, through a thread that `close` ends.

    Raises:
        ConfigError: `filter_text`, the value of `RUST_LOG`, is malformed.
    """
    log_filter = Filter.parse(ALWAYS + filter_text)
    close()
    _ROOT.apply(log_filter, is_json=is_json, writer=LineWriter(fd, _ROOT.lost, _notice))
    _refresh_loggers()


def lost() -> Mapping[str, int]:
    """How many lines were lost so far, by reason."""
    return _ROOT.lost


def filter_text() -> str:
    """The filter in force, its most specific directives first."""
    return str(_ROOT.filter)


def change_filter(added: str, *, is_reset: bool = False) -> None:
    """Adds directives to the filter in force, or to that of the start; the next line obeys.

    Raises:
        ConfigError: `added` is malformed, or with it the filter grows too long; nothing changes.
    """
    base = _ROOT.start_filter if is_reset else _ROOT.filter
    changed = Filter.parse(f"{base},{added}" if added else str(base))
    text = str(changed)
    if len(text) > _FILTER_MAX:
        raise ConfigError(f"the log filter would be longer than {_FILTER_MAX} characters")
    logger("ztunnel::telemetry").info(f"new log filter is {text}")
    _ROOT.filter = changed
    _refresh_loggers()


def close() -> None:
    """Writes what is queued, for at most a second; later lines go to standard error."""
    if _ROOT.writer is None:
        return
    _ROOT.writer.close()
    _ROOT.apply(Filter.parse(DEFAULT), is_json=False, writer=None)
    _refresh_loggers()


atexit.register(close)


def _refresh_loggers() -> None:
    for known in list(_ROOT.loggers.values()):
        known.refresh()


def _notice(count: int) -> bytes:
    """The line that says where lines are missing."""
    message, now = f"{count} log lines were lost here", _ROOT.clock()
    if _ROOT.json:
        return encoded(_json_line(now, "warn", "ztunnel::log", message, {}))
    return encoded(_plain_line(now, "warn", "log", message, {}))


def plain(fields: Mapping[str, object]) -> str:
    """Fields as the plain form writes them."""
    return " ".join(_plain_pairs(fields))


def encoded(line: str) -> bytes:
    """A line as it is written."""
    return line.encode("utf-8", "backslashreplace")


def _plain_line(
    now: str, level: str, scope: str, message: str, fields: Mapping[str, object]
) -> str:
    if not message.isprintable():
        message = _escape(message, quotes="")
    return f"{now}\t{level}\t{scope}\t{message}\t{plain(fields)}\n"


def _plain_pairs(fields: Mapping[str, object]) -> list[str]:
    parts = []
    for name, value in fields.items():
        if isinstance(value, str):
            text = value
            if not text.isprintable() or '"' in text or "\\" in text:
                text = _escape(text)
            parts.append(f'{name}="{text}"')
        elif isinstance(value, Group):
            if value.plain:
                parts.append(value.plain)
        elif value is not None:
            parts.append(f"{name}={_bare(value)}")
    return parts


def _json_line(
    now: str, level: str, target: str, message: str, fields: Mapping[str, object]
) -> str:
    event: dict[str, object] = {"level": level, "time": now, "scope": target, "message": message}
    _add_json(event, fields)
    return _encode(event) + "\n"


def _add_json(event: dict[str, object], fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        if value.__class__ in _JSON:
            event[name] = value
        elif isinstance(value, Group):
            _add_json(event, value.fields)
        elif value is not None:
            event[name] = str(value)


def _names(fields: Mapping[str, object]) -> set[str]:
    names = set(fields)
    for value in fields.values():
        if isinstance(value, Group):
            names |= _names(value.fields)
    return names


def _bare(value: object) -> str:
    if value.__class__ is bool:
        return "true" if value else "false"
    text = str(value)
    # What came from the network must not be able to begin a line of its own.
    return text if text.isprintable() else _escape(text, quotes="")


def _escape(text: str, quotes: str = '"\\') -> str:
    return "".join(_escape_character(c) if not c.isprintable() or c in quotes else c for c in text)


def _escape_character(character: str) -> str:
    simple = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0", '"': '\\"', "\\": "\\\\"}
    return simple.get(character) or f"\\u{{{ord(character):x}}}"
