# SPDX-License-Identifier: Apache-2.0
"""Answers of servers, kept for as long as they say; the oldest go where it is too much.

Source: spec state, section 7.8; RFC 2308 for answers that there is nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import dns.message
import dns.rdatatype

if TYPE_CHECKING:
    from dns.message import Message
    from dns.name import Name
    from dns.rdatatype import RdataType

    from ztunnel_py.clock import Clock

KEPT_MAX, KEPT_BYTES = 1024, 1024
"""At most so many answers, none of them larger."""
TTL_MAX_S = 86_400

Key = tuple["Name", "RdataType"]


class Found(NamedTuple):
    """What a server has answered."""

    message: Message
    age_s: int = 0


class _Entry(NamedTuple):
    wire: bytes
    born: float
    ttl_s: int


class Kept:
    """The answers for one client."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[Key, _Entry] = {}

    def get(self, key: Key) -> Found | None:
        """What is kept and has not expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age_s = int(self._clock.now() - entry.born)
        if age_s >= entry.ttl_s:
            del self._entries[key]
            return None
        return Found(dns.message.from_wire(entry.wire), age_s)

    def put(self, key: Key, answer: Message) -> None:
        """Keeps an answer, if it may be kept."""
        wire, ttl_s = answer.wire, _ttl_s(answer)
        if wire is None or len(wire) > KEPT_BYTES or not ttl_s:
            return
        self._entries.pop(key, None)
        if len(self._entries) >= KEPT_MAX:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = _Entry(wire, self._clock.now(), ttl_s)


def _ttl_s(answer: Message) -> int:
    """How long it may be kept; an answer that there is nothing says so by its SOA record."""
    if answer.answer:
        return min(TTL_MAX_S, *(records.ttl for records in answer.answer))
    ends = (one for one in answer.authority if one.rdtype == dns.rdatatype.SOA)
    return min((min(TTL_MAX_S, one.ttl, one[0].minimum) for one in ends), default=0)
