# SPDX-License-Identifier: Apache-2.0
"""Where a gRPC server is: host and port, or a socket in the file system."""

from __future__ import annotations

import urllib.parse
from typing import NamedTuple

_HTTPS_PORT = 443


class TcpAddress(NamedTuple):
    """A server that is reached over TCP."""

    scheme: str
    host: str
    """A name or an IP address, without brackets."""
    port: int
    authority: str
    """Host and port as they were configured, for requests."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @classmethod
    def parse(cls, text: str) -> TcpAddress:
        """The address in `text`; without a scheme it is `https`.

        Raises:
            ValueError: it names no host, or a port that is none.
        """
        parts = urllib.parse.urlsplit(text if "://" in text else f"https://{text}")
        if not parts.hostname:
            raise ValueError(f"{text!r} names no host")
        authority = parts.netloc.rpartition("@")[2]
        port = _HTTPS_PORT if parts.port is None else parts.port
        return cls(parts.scheme.lower(), parts.hostname, port, authority)


class UnixAddress(NamedTuple):
    """A server on this machine."""

    path: str

    @property
    def authority(self) -> str:
        """What requests name; nobody routes by it."""
        return "localhost"

    def __str__(self) -> str:
        return f"unix://{self.path}"


Address = TcpAddress | UnixAddress
