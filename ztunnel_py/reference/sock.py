# SPDX-License-Identifier: Apache-2.0
"""Sockets: listening, accepted, dialled; original destination; the client's own address.

Source: spec dataplane, sections 1.4 to 1.7, and redirection, section 6.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

from ztunnel_py import reuseport
from ztunnel_py.clock import pause, within
from ztunnel_py.netns import open_socket
from ztunnel_py.state.address import SockAddr, canonical, parse_ip

if TYPE_CHECKING:
    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import SocketOptions
    from ztunnel_py.netns import Netns
    from ztunnel_py.state.address import Ip

BACKLOG = 1024

_SO_ORIGINAL_DST = 80
_IP_FREEBIND = 15
_IP_TRANSPARENT = 19
_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_TRANSPARENT = 75
_IPV6_FREEBIND = 78
_PORTS_USED_UP_S = 0.1
_TRIES = 31


def listen(
    address: str, port: int, options: SocketOptions, netns: Netns | None = None
) -> socket.socket:
    """A bound, listening, non-blocking socket in the namespace `netns`. `::` also takes IPv4.

    Raises:
        OSError: the port is taken, or the address is not ours; `filename` is the address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = open_socket(netns, family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        is_shared = netns is not None and options.port_reuse
        reuse = socket.SO_REUSEPORT if is_shared else socket.SO_REUSEADDR
        sock.setsockopt(socket.SOL_SOCKET, reuse, 1)
        if netns is not None and options.mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, options.mark)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        if is_shared:
            reuseport.take_part(sock)
    except OSError as error:
        sock.close()
        where = str(SockAddr(parse_ip(address), port))
        raise OSError(error.errno, error.strerror, where) from error
    return sock


def make_transparent(sock: socket.socket) -> bool:
    """Sets IP_TRANSPARENT, which tells whether client addresses can be kept; False if denied."""
    try:
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
    except OSError:
        return False
    return True


def set_accepted_options(sock: socket.socket, options: SocketOptions, *, keepalive: bool) -> None:
    """NODELAY, and keepalive where no HTTP/2 PING watches the connection.

    Raises:
        OSError: the connection is already gone.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive:
        with contextlib.suppress(OSError):
            _set_keepalive(sock, options)


def _set_keepalive(sock: socket.socket, options: SocketOptions) -> None:
    if options.keepalive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, options.keepalive_time_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, options.keepalive_interval_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, options.keepalive_retries)
    if options.user_timeout:
        limit = options.keepalive_time_s + options.keepalive_retries * options.keepalive_interval_s
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit * 1000)


def original_destination(sock: socket.socket) -> SockAddr:
    """Where the client meant to go before redirection; its local address if there was none."""
    with contextlib.suppress(OSError):
        raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        (port,) = struct.unpack_from("!H", raw, 2)
        return SockAddr(ipaddress.IPv4Address(raw[4:8]), port)
    with contextlib.suppress(OSError):
        raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
        (port,) = struct.unpack_from("!H", raw, 2)
        return SockAddr(canonical(ipaddress.IPv6Address(raw[8:24])), port)
    return SockAddr.of(sock.getsockname())


async def dial(
    target: SockAddr,
    options: SocketOptions,
    clock: Clock,
    timeout_s: float,
    source: SockAddr | None = None,
    *,
    netns: Netns | None = None,
    is_busy: bool = False,
) -> socket.socket:
    """Connects to `target`, from the client's address if `source` is given.

    `source` is the client's address and port. Its address is bound unless it is the target's own;
    its port is never used: the redirected connection of the client owns that tuple. `is_busy` says
    that this pair uses up ports (see `Churn`).

    Raises:
        OSError: the connection failed.
        TimeoutError: not connected after `timeout_s`; its text is `deadline has elapsed`.
    """
    return await within(
        clock, timeout_s, _dial_from(target, options, source, clock, netns, is_busy=is_busy)
    )


async def _dial_from(
    target: SockAddr,
    options: SocketOptions,
    source: SockAddr | None,
    clock: Clock,
    netns: Netns | None,
    *,
    is_busy: bool,
) -> socket.socket:
    for left in reversed(range(_TRIES)):
        try:
            sock = await _dial_once(target, options, source, netns, is_busy=is_busy)
        except OSError as error:
            if source is None or error.errno != errno.EADDRNOTAVAIL or not left:
                raise
            # All source ports are in use or in TIME_WAIT: some come back within a second.
            await pause(clock, _PORTS_USED_UP_S)
            continue
        if source is None or SockAddr.of(sock.getsockname()) != source:
            return sock
        sock.close()  # the client's own port: its connection owns that tuple
    raise OSError(errno.EADDRINUSE, "the kernel keeps choosing the client's own source port")


async def _dial_once(
    target: SockAddr,
    options: SocketOptions,
    source: SockAddr | None,
    netns: Netns | None,
    *,
    is_busy: bool,
) -> socket.socket:
    family = socket.AF_INET6 if target.ip.version == 6 else socket.AF_INET
    sock = open_socket(netns, family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            _set_keepalive(sock, options)
        if options.mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, options.mark)
        if source is not None and source.ip != target.ip:
            _bind_as(sock, source.ip, target.ip, netns, is_busy=is_busy)
        await asyncio.get_running_loop().sock_connect(sock, (str(target.ip), target.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_as(
    sock: socket.socket, source: Ip, target: Ip, netns: Netns | None, *, is_busy: bool
) -> None:
    """Binds to an address that is not ours, port unchosen. Failure leaves the socket unbound.

    The port is chosen at connect, by the full tuple. The application is local, so its connection
    runs over `lo`: tying the socket to it lets the kernel reuse ports in TIME_WAIT. IPv6 finds no
    route to a local address through `lo`, so there it cannot be done.
    """
    with contextlib.suppress(OSError):
        if source.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
            sock.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            if is_busy and source.version == 4 and _is_local(target, netns):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        sock.bind((str(source), 0))


def _is_local(ip: Ip, netns: Netns | None) -> bool:
    """The address belongs to the namespace: an ordinary socket can be bound to it."""
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with open_socket(netns, family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True
