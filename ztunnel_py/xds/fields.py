# SPDX-License-Identifier: Apache-2.0
"""Checked access to the mappings of a tree; every error says where it is."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ztunnel_py.state.address import NetworkAddress, parse_ip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ztunnel_py.state.address import Ip

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)

_REQUIRED: Final[Any] = object()
_MAX_PORT = 65535


class Fields:
    """The fields of one mapping. What is asked for without a default must be there.

    Errors are ValueErrors whose text starts with the path of the field.
    """

    __slots__ = ("_path", "_values")

    def __init__(self, value: object, allowed: frozenset[str], path: str = "") -> None:
        """Fields of the mapping `value`, which may have no key that is not `allowed`."""
        self._path = path
        if not isinstance(value, dict):
            raise ValueError(f"{_at(path)}expected a mapping, got {_shown(value)}")
        if not value.keys() <= allowed:
            unknown = next(key for key in value if key not in allowed)
            raise ValueError(f"{_at(path)}unknown key {unknown!r}")
        self._values: dict[str, object] = value

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def path(self, key: str) -> str:
        """Where `key` is, for error texts."""
        return f"{self._path}.{key}" if self._path else key

    def value(self, key: str, default: object = _REQUIRED) -> object:
        """Whatever is there."""
        value = self._values.get(key, default)
        if value is _REQUIRED:
            raise ValueError(f"{_at(self._path)}missing key {key!r}")
        return value

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        value = self.value(key, default)
        if type(value) is not str:
            raise ValueError(f"{self.path(key)}: expected a string, got {_shown(value)}")
        return value

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        """True or false."""
        value = self.value(key, default)
        if type(value) is not bool:
            raise ValueError(f"{self.path(key)}: expected true or false, got {_shown(value)}")
        return value

    def number(self, key: str, most: int, default: int = _REQUIRED) -> int:
        """A whole number from 0 to `most`."""
        return number(self.value(key, default), most, self.path(key))

    def port(self, key: str) -> int:
        """A port number."""
        return self.number(key, _MAX_PORT)

    def word(self, key: str, words: Mapping[str, E], default: E = _REQUIRED) -> E:
        """One of `words`."""
        value = self._values.get(key, default)
        if isinstance(value, enum.Enum):
            return default
        return word(self.value(key, default), words, self.path(key))

    def items(self, key: str, default: list[object] = _REQUIRED) -> Iterator[tuple[str, object]]:
        """The elements of a list, each with its path."""
        yield from elements(self.value(key, default), self.path(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty by default."""
        return tuple(text(value, path) for path, value in self.items(key, []))

    def mapping(self, key: str, default: dict[str, object] = _REQUIRED) -> dict[object, object]:
        """A mapping of any keys."""
        value = self.value(key, default)
        if not isinstance(value, dict):
            raise ValueError(f"{self.path(key)}: expected a mapping, got {_shown(value)}")
        return value

    def ports(self, key: str) -> dict[int, int]:
        """Service ports to target ports."""
        return ports(self.value(key), self.path(key))


def words_of(kind: type[E]) -> dict[str, E]:
    """The words by which the members of an enumeration are written."""
    return {member.value: member for member in kind}


def elements(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The elements of the list `value`, each with its path."""
    if not isinstance(value, list):
        raise ValueError(f"{path}: expected a list, got {_shown(value)}")
    for i, element in enumerate(value):
        yield f"{path}[{i}]", element


def text(value: object, path: str) -> str:
    """`value` as a string."""
    if not isinstance(value, str):
        raise ValueError(f"{path}: expected a string, got {_shown(value)}")
    return value


def word(value: object, words: Mapping[str, E], path: str) -> E:
    """`value` as one of `words`."""
    found = words.get(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{path}: {_shown(value)} is none of {', '.join(words)}")
    return found


def number(value: object, most: int, path: str) -> int:
    """`value` as a whole number from 0 to `most`."""
    if type(value) is not int or not 0 <= value <= most:
        shown = _shown(value)
        raise ValueError(f"{path}: expected a whole number from 0 to {most}, got {shown}")
    return value


def port(value: object, path: str) -> int:
    """`value` as a port number."""
    return number(value, _MAX_PORT, path)


def ports(value: object, path: str) -> dict[int, int]:
    """`value` as a mapping of ports; keys may be quoted, as JSON must."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a mapping of ports, got {_shown(value)}")
    return {port(_unquoted(k), f"{path} key"): port(v, f"{path}[{k}]") for k, v in value.items()}


def converted(convert: Callable[[str], T], value: object, path: str) -> T:
    """What `convert` makes of the string `value`."""
    try:
        return convert(text(value, path))
    except ValueError as error:
        shown = str(error)
        raise ValueError(shown if shown.startswith(path) else f"{path}: {shown}") from error


def ip(value: object, path: str) -> Ip:
    """`value` as an IP address."""
    return converted(parse_ip, value, path)


def network_address(value: object, path: str) -> NetworkAddress:
    """`value` as network/ip."""
    return converted(NetworkAddress.parse, value, path)


def _unquoted(key: object) -> object:
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key


def _at(path: str) -> str:
    return f"{path}: " if path else ""


def _shown(value: object) -> str:
    """A value as a person wrote it, cut if long."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return str(value).lower()
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
