# SPDX-License-Identifier: Apache-2.0
"""JSON as the admin port writes it, two-space indent and sorted keys, made a piece at a time.

The whole of a large mesh is a hundred megabytes of text and several times that as objects: so the
elements of `Each` are made when their turn has come, and are gone when they are written.
"""

from __future__ import annotations

import heapq
import json
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

_TOKENS = 64
"""Tokens of one piece, well under a millisecond of work."""
_ENCODER = json.JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False)


class Each(Generic[T, R]):
    """A list in the making: what `make` makes of each of `values`, anew for each who reads it."""

    def __init__(self, make: Callable[[T], R], values: Iterable[T]) -> None:
        self._make = make
        self._values = values

    def __iter__(self) -> Iterator[R]:
        return map(self._make, self._values)


class InOrder(Generic[T]):
    """Values by ascending `key`, sorted while they are read: all at once would take too long."""

    def __init__(self, values: Iterable[T], key: Callable[[T], str]) -> None:
        self._values = [(key(value), place, value) for place, value in enumerate(values)]

    def __iter__(self) -> Iterator[T]:
        heap = self._values.copy()
        heapq.heapify(heap)
        while heap:
            yield heapq.heappop(heap)[2]


def to_json(value: object) -> str:
    """The whole text."""
    return "".join(pieces(value))


def pieces(value: object, margin: str = "\n") -> Iterator[str]:
    """The text of a value piece by piece; lines but the first begin with `margin`.

    Dicts, lists within them and `Each` are taken apart; their elements are made and encoded whole.
    """
    match value:
        case dict() if value:
            members = ((f"{_ENCODER.encode(key)}: ", value[key]) for key in sorted(value))
            yield from _enclosed("{", members, "}", margin, pieces)
        case list() | Each():
            yield from _enclosed("[", (("", one) for one in value), "]", margin, _encoded)
        case _:
            yield from _encoded(value, margin)


def _enclosed(
    opening: str,
    members: Iterable[tuple[str, object]],
    closing: str,
    margin: str,
    write: Callable[[object, str], Iterator[str]],
) -> Iterator[str]:
    inner, is_empty = f"{margin}  ", True
    for key, one in members:
        yield f"{opening if is_empty else ','}{inner}{key}"
        yield from write(one, inner)
        is_empty = False
    yield f"{opening}{closing}" if is_empty else f"{margin}{closing}"


def _encoded(value: object, margin: str) -> Iterator[str]:
    tokens = _ENCODER.iterencode(value)
    while text := "".join(islice(tokens, _TOKENS)):
        yield text.replace("\n", margin)  # within strings JSON has none
