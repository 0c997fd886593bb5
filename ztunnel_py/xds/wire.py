# SPDX-License-Identifier: Apache-2.0
"""Discovery messages as bytes: large ones are read and made piece by piece, never as a whole.

A response may have 200 MiB, and reading it at once would stall everything else for as long as that
takes. So it is walked field by field, and whoever walks may stop between any two of them.
Source: spec state, section 2.1; the protobuf encoding guide.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSIONS_PER_PART = 1000
RESOURCES = DeltaDiscoveryResponse.RESOURCES_FIELD_NUMBER
TYPE_URL = DeltaDiscoveryResponse.TYPE_URL_FIELD_NUMBER
NONCE = DeltaDiscoveryResponse.NONCE_FIELD_NUMBER
REMOVED_RESOURCES = DeltaDiscoveryResponse.REMOVED_RESOURCES_FIELD_NUMBER

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Kinds of fields of a fixed size, and their bytes."""
_VARINT_MAX = 10
"""Bytes of the longest number."""


class MalformedError(ValueError):
    """A response is not what it claims to be; no part of the rest can be trusted."""


def walk(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message in order: number and content.

    What is no text, bytes or message counts as number 0 without content, so that a step is short
    whatever a message consists of.

    Raises:
        MalformedError: it is cut short, or no message.
    """
    at, size = 0, len(message)
    while at < size:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        content = message[at:at]
        if kind == _BYTES:
            length, at = _varint(message, at)
            content = message[at : at + length]
            at += length
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise MalformedError(f"field {number} is of unknown kind {kind}")
        if at > size:
            raise MalformedError(f"field {number} is cut short")
        yield (number if kind == _BYTES else 0), content


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for position, byte in enumerate(message[at : at + _VARINT_MAX]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, at + position + 1
    raise MalformedError("a number is cut short")


def text(content: memoryview) -> str:
    """A text field.

    Raises:
        MalformedError: it is not UTF-8.
    """
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"a text is not UTF-8: {error}") from None


def resource(content: memoryview) -> Resource:
    """One of `RESOURCES`.

    Raises:
        MalformedError: it cannot be parsed.
    """
    try:
        return Resource.FromString(bytes(content))
    except DecodeError as error:
        raise MalformedError(f"a resource cannot be parsed: {error}") from None


def request_parts(request: DeltaDiscoveryRequest, versions: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of `request` with `versions` as its initial ones; each part is made quickly.

    Joined parts are one message: maps of protobuf messages that follow each other merge.
    """
    yield request.SerializeToString()
    left = iter(versions.items())
    while some := dict(itertools.islice(left, VERSIONS_PER_PART)):
        yield DeltaDiscoveryRequest(initial_resource_versions=some).SerializeToString()
