# SPDX-License-Identifier: Apache-2.0
"""Looks at the sockets of this process and at the kernel's table of connections."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYN_SENT = "02"
_DESCRIPTORS = Path("/proc/self/fd")


def connected(local: SockAddr | None = None, remote: SockAddr | None = None) -> socket.socket:
    """A duplicate of this process's TCP socket with these ends, whoever owns it; close it."""
    for sock in _tcp_sockets():
        with contextlib.suppress(OSError):
            ends = SockAddr.of(sock.getsockname()), SockAddr.of(sock.getpeername())
            if ends[0] == (local or ends[0]) and ends[1] == (remote or ends[1]):
                return sock
        sock.close()
    raise LookupError(f"no socket {local} - {remote}")


def _tcp_sockets() -> Iterator[socket.socket]:
    for entry in os.listdir(_DESCRIPTORS):
        with contextlib.suppress(OSError):
            if os.readlink(_DESCRIPTORS / entry).startswith("socket:"):
                sock = socket.socket(fileno=os.dup(int(entry)))
                if sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX:
                    yield sock
                else:
                    sock.close()


def has_unanswered_syn(to: SockAddr) -> bool:
    """Somebody on this machine is connecting to the IPv4 address `to`."""
    wanted = f"{int.from_bytes(to.ip.packed, 'little'):08X}:{to.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(fields[2:4] == [wanted, _SYN_SENT] for fields in map(str.split, lines))
