# SPDX-License-Identifier: Apache-2.0
"""Two programs at one address, of which one takes over from the other.

Source: socket(7), SO_REUSEPORT and SO_ATTACH_REUSEPORT_CBPF.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68
_BPF_RET = 6


def step_aside(sock: socket.socket) -> None:
    """From now on what is new goes to the other socket at the same address, if there is one.

    Of two the elder is the first, so a program that chooses the second chooses the other. Where
    there is none the kernel goes on as without a program.
    """
    second = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RET, 0, 0, 1))
    program = struct.pack("@HP", 1, ctypes.addressof(second))
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)


def take_part(sock: socket.socket) -> None:
    """A bound socket gets its share: an earlier one may have stepped aside, but not for this."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
