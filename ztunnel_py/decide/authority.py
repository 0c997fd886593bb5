# SPDX-License-Identifier: Apache-2.0
"""The `:authority` of a CONNECT: an address, or a hostname of a service, and a port."""

from __future__ import annotations

import re
from typing import NamedTuple

from ztunnel_py.state.address import SockAddr

_NAMED = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]+):([0-9]{1,5})")


class HostPort(NamedTuple):
    """A service by its hostname."""

    host: str
    port: int


def parse(text: str) -> SockAddr | HostPort:
    """`ip:port`, `[v6]:port` or `host:port`; addresses are not canonicalised.

    Raises:
        ValueError: anything else; both parts are mandatory.
    """
    try:
        return SockAddr.parse(text)
    except ValueError:
        named = _NAMED.fullmatch(text)
        if named is None or int(named[2]) > 65535:
            raise ValueError(f"{text!r} is neither ip:port nor host:port") from None
        return HostPort(named[1], int(named[2]))
