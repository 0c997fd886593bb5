# SPDX-License-Identifier: Apache-2.0
"""The PROXY v2 header that an application tunnel begins with (spec dataplane, section 6.6)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.address import SockAddr

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_PROXY = 0x21
_TCP4, _TCP6, _UNSPECIFIED = 0x11, 0x21, 0x01
_TLV_PRINCIPAL = 0xD0


def header(source: SockAddr, target: SockAddr, identity: Identity | None) -> bytes:
    """The header naming the client, the address it asked for and who it is.

    Addresses of different families cannot be said: then the family is "unspecified", without any.
    """
    if source.ip.version != target.ip.version:
        family, body = _UNSPECIFIED, b""
    else:
        family = _TCP6 if source.ip.version == 6 else _TCP4
        body = source.ip.packed + target.ip.packed + struct.pack("!HH", source.port, target.port)
    if identity is not None:
        name = str(identity).encode()
        body += struct.pack("!BH", _TLV_PRINCIPAL, len(name)) + name
    return _SIGNATURE + struct.pack("!BBH", _VERSION_PROXY, family, len(body)) + body
