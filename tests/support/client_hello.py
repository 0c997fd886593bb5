# SPDX-License-Identifier: Apache-2.0
"""Reads a TLS ClientHello (RFC 8446, section 4.1.2)."""

from __future__ import annotations

from typing import NamedTuple

SERVER_NAME, SUPPORTED_GROUPS, ALPN, SESSION_TICKET = 0, 10, 16, 35
PRE_SHARED_KEY, EARLY_DATA = 41, 42
_RECORD_HEADER = 5
_RANDOM_AT = 4 + 2  # message header, version


class ClientHello(NamedTuple):
    """What a client offers."""

    session_id: bytes
    extensions: dict[int, bytes]

    @classmethod
    def parse(cls, record: bytes) -> ClientHello:
        """Of the first TLS record of a connection."""
        message = _Bytes(record[_RECORD_HEADER + _RANDOM_AT + 32 :])
        session_id = message.vector(1)
        message.vector(2)  # suites
        message.vector(1)  # compression
        rest = _Bytes(message.vector(2))
        extensions = {}
        while rest.left:
            kind = int.from_bytes(rest.take(2), "big")
            extensions[kind] = rest.vector(2)
        return cls(session_id, extensions)

    @property
    def groups(self) -> list[int]:
        """Key exchanges offered, in their order."""
        numbers = _Bytes(self.extensions[SUPPORTED_GROUPS]).vector(2)
        return [int.from_bytes(numbers[at : at + 2], "big") for at in range(0, len(numbers), 2)]

    @property
    def alpn(self) -> list[str]:
        """Protocols offered."""
        names = _Bytes(_Bytes(self.extensions[ALPN]).vector(2))
        found = []
        while names.left:
            found.append(names.vector(1).decode())
        return found


def with_suites(record: bytes, suite: int) -> bytes:
    """The same ClientHello, every suite it offers replaced by one."""
    session_at = _RECORD_HEADER + _RANDOM_AT + 32
    at = session_at + 1 + record[session_at]
    length = int.from_bytes(record[at : at + 2], "big")
    suites = suite.to_bytes(2, "big") * (length // 2)
    return record[: at + 2] + suites + record[at + 2 + length :]


class _Bytes:
    """Bytes, taken from the front."""

    def __init__(self, left: bytes) -> None:
        self.left = left

    def take(self, length: int) -> bytes:
        taken, self.left = self.left[:length], self.left[length:]
        return taken

    def vector(self, size: int) -> bytes:
        """A field that begins with its length."""
        return self.take(int.from_bytes(self.take(size), "big"))
