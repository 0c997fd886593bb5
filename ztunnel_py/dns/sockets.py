# SPDX-License-Identifier: Apache-2.0
"""Sockets of one client: in its network namespace, and marked, so that they are not captured.

Source: spec identity-ops, section B.8, and state, section 7.8.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py import reuseport
from ztunnel_py.netns import open_socket
from ztunnel_py.state.address import SockAddr, parse_ip

if TYPE_CHECKING:
    from ztunnel_py.netns import Netns

BACKLOG = 128


class Sockets(NamedTuple):
    """Makes sockets; all of them are non-blocking."""

    netns: Netns | None = None
    """None: ours."""
    mark: int | None = None
    port_reuse: bool = False
    """Another proxy may listen at the same addresses of a pod."""

    @property
    def shares(self) -> bool:
        """Bound sockets may have others beside them."""
        return self.netns is not None and self.port_reuse

    def bind(self, kind: socket.SocketKind, host: str, port: int) -> socket.socket:
        """A bound socket for datagrams, or a listening one.

        Raises:
            OSError: the address cannot be had; `filename` is the address.
        """
        sock = self._open(kind, host, is_marked=self.netns is not None)
        try:
            if self.shares:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            elif kind is socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            if kind is socket.SOCK_STREAM:
                sock.listen(BACKLOG)
            if self.shares:
                reuseport.take_part(sock)
        except OSError as error:
            sock.close()
            where = str(SockAddr(parse_ip(host), port))
            raise OSError(error.errno, error.strerror, where) from error
        return sock

    def dial(self, kind: socket.SocketKind, host: str) -> socket.socket:
        """A socket to connect to `host`.

        Raises:
            OSError: there is none to be had.
        """
        return self._open(kind, host, is_marked=True)

    def _open(self, kind: socket.SocketKind, host: str, *, is_marked: bool) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = open_socket(self.netns, family, kind | socket.SOCK_NONBLOCK)
        if is_marked and self.mark is not None:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
            except OSError:
                sock.close()
                raise
        return sock
