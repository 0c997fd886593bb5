# SPDX-License-Identifier: Apache-2.0
"""Compression of what HTTP servers send: gzip, br, zstd and deflate.

Levels are low: text of metrics shrinks to a tenth at the lowest already, and whoever scrapes waits.
"""

from __future__ import annotations

import zlib
from types import MappingProxyType
from typing import TYPE_CHECKING

import brotli
import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_FAST = 1
_GZIP, _ZLIB = 31, 15
"""Formats of zlib: its `wbits`."""


def _zlib(wbits: int) -> Callable[[bytes], bytes]:
    return lambda data: zlib.compress(data, _FAST, wbits)


_CODINGS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "zstd": lambda data: zstandard.ZstdCompressor(level=_FAST).compress(data),
        "gzip": _zlib(_GZIP),
        "br": lambda data: brotli.compress(data, quality=_FAST),
        "deflate": _zlib(_ZLIB),
    }
)
"""By name in `Accept-Encoding`; of several that a client likes equally, the first."""


def chosen(accepted: str) -> str:
    """The coding that a client likes best of those that we know; empty for none."""
    weights = {}
    for element in accepted.lower().split(","):
        name, _, parameter = element.partition(";")
        weight = parameter.strip().removeprefix("q=").strip() or "1"
        weights[name.strip()] = float(weight) if weight.replace(".", "", 1).isdecimal() else 0.0
    best = max(_CODINGS, key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > 0 else ""


def encode(coding: str, parts: Sequence[bytes]) -> bytes:
    """The parts as one, compressed; for a thread, where they are long."""
    whole = b"".join(parts)
    return _CODINGS[coding](whole) if coding else whole
