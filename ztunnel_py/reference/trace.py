# SPDX-License-Identifier: Apache-2.0
"""Which connection this is, on every node that it passes.

The client's side draws the id and sends it in the `traceparent` of its CONNECT (W3C Trace Context),
where ztunnel has a random one. The server's side takes it over, if it is exactly of that form:
nothing else of the header gets anywhere.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_VALUE = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class Trace(NamedTuple):
    """Hexadecimal digits, lower case."""

    id: str
    span: str = ""
    """Of the client's side; empty where that side said nothing."""

    @property
    def traceparent(self) -> str:
        """The value of the header."""
        return f"00-{self.id}-{self.span}-00"


def drawn(*, is_client: bool) -> Trace:
    """One that nobody else has."""
    return Trace(os.urandom(16).hex(), os.urandom(8).hex() if is_client else "")


def parsed(value: str) -> Trace | None:
    """What a `traceparent` says; None if it is malformed."""
    match = _VALUE.fullmatch(value)
    if match is None or not all(int(part, 16) for part in match.groups()):
        return None
    return Trace(*match.groups())
