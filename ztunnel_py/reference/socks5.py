# SPDX-License-Identifier: Apache-2.0
"""SOCKS5 on 127.0.0.1:15080: the destination comes from the client instead of the kernel.

Source: spec dataplane, section 11. Success is answered before anything is contacted.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

from ztunnel_py.clock import within
from ztunnel_py.errors import LookupFailedError
from ztunnel_py.state.address import SockAddr, canonical

if TYPE_CHECKING:
    import socket

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import Resolve
    from ztunnel_py.state.address import Ip

_VERSION = 5
_NO_AUTHENTICATION = 0
_CONNECT = 1
_IPV4, _HOSTNAME, _IPV6 = 1, 3, 4
_SIZES = {_IPV4: 4, _IPV6: 16}
_GENERAL_FAILURE, _UNREACHABLE, _UNSUPPORTED = 1, 4, 7
_SUCCESS = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


class NegotiationError(Exception):
    """The client does not get through; `code` is what it was told."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


async def negotiate(
    sock: socket.socket, clock: Clock, limit_s: float, resolve: Resolve | None = None
) -> SockAddr:
    """Reads exactly the negotiation from a connected socket and answers it.

    Returns the destination asked for; a hostname is looked up by `resolve`, in the IP version that
    the client came by. Nothing beyond the negotiation is read.

    Raises:
        NegotiationError: refused; the reply has been sent.
    """
    try:
        target = await within(clock, limit_s, _converse(sock, resolve))
    except (OSError, EOFError) as error:
        await _refuse(sock, _GENERAL_FAILURE)
        raise NegotiationError(_GENERAL_FAILURE, str(error)) from error
    except NegotiationError as error:
        await _refuse(sock, error.code)
        raise
    await asyncio.get_running_loop().sock_sendall(sock, _SUCCESS)
    return target


async def _converse(sock: socket.socket, resolve: Resolve | None) -> SockAddr:
    version, n_methods = await _read(sock, 2)
    if version != _VERSION or n_methods == 0:
        raise NegotiationError(_UNSUPPORTED, f"version {version}, {n_methods} methods")
    if _NO_AUTHENTICATION not in await _read(sock, n_methods):
        raise NegotiationError(_UNSUPPORTED, "the client insists on authentication")
    await asyncio.get_running_loop().sock_sendall(sock, bytes([_VERSION, _NO_AUTHENTICATION]))
    version, command = await _read(sock, 2)
    if version != _VERSION or command != _CONNECT:
        raise NegotiationError(_UNSUPPORTED, f"version {version}, command {command}")
    _, kind = await _read(sock, 2)
    raw = await _read(sock, await _size(sock, kind))
    port = int.from_bytes(await _read(sock, 2), "big")
    if kind == _HOSTNAME:
        return SockAddr(await _resolved(sock, raw, resolve), port)
    return SockAddr(canonical(ipaddress.ip_address(raw)), port)


async def _size(sock: socket.socket, kind: int) -> int:
    """How many bytes the address has."""
    if kind in _SIZES:
        return _SIZES[kind]
    if kind == _HOSTNAME:
        (size,) = await _read(sock, 1)
        return size
    raise NegotiationError(_UNSUPPORTED, f"address type {kind}")


async def _resolved(sock: socket.socket, name: bytes, resolve: Resolve | None) -> Ip:
    if resolve is None:
        raise NegotiationError(_UNSUPPORTED, "hostnames need the DNS proxy, which is off")
    try:
        hostname = name.decode()
    except UnicodeDecodeError:
        raise NegotiationError(_UNSUPPORTED, "the hostname is not UTF-8") from None
    try:
        return await resolve(hostname, SockAddr.of(sock.getpeername()).ip.version)
    except LookupFailedError as error:
        raise NegotiationError(_UNREACHABLE, str(error)) from error


async def _read(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    found = b""
    while len(found) < length:
        piece = await loop.sock_recv(sock, length - len(found))
        if not piece:
            raise EOFError("the client hung up")
        found += piece
    return found


async def _refuse(sock: socket.socket, code: int) -> None:
    reply = bytes([_VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0])
    try:
        await asyncio.get_running_loop().sock_sendall(sock, reply)
    except OSError:
        return  # it is gone; there is nobody to tell
