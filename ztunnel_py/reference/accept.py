# SPDX-License-Identifier: Apache-2.0
"""A listener: accepts in small batches, and backs off when descriptors run out."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from ztunnel_py import reuseport
from ztunnel_py.reference import sock as sockets
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.dataplane.abc import EngineSettings, ListenAddress, Role
    from ztunnel_py.netns import Netns

_BATCH = 64
_BACK_OFF_S = 0.05
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """One listening socket of one role. Bound at once, accepts after `serve`."""

    def __init__(
        self,
        where: ListenAddress,
        clock: Clock,
        on_accept: Callable[[Role, socket.socket, SockAddr], None],
        on_exhausted: Callable[[OSError], None],
        settings: EngineSettings,
        netns: Netns | None = None,
    ) -> None:
        self.role = where.role
        self._clock = clock
        self._on_accept = on_accept
        self._on_exhausted = on_exhausted
        self._pause: Timer | None = None
        self._is_serving = False
        self._is_shared = netns is not None and settings.sockets.port_reuse
        orig_src = settings.orig_src
        self._sock = sockets.listen(where.address, where.port, settings.sockets, netns)
        self.is_transparent = orig_src is not False and sockets.make_transparent(self._sock)
        if orig_src and not self.is_transparent:
            self._sock.close()
            raise PermissionError(
                errno.EPERM,
                "ENABLE_ORIG_SRC=true needs CAP_NET_ADMIN to keep client addresses",
                f"{where.address}:{where.port}",
            )
        self.address = SockAddr.of(self._sock.getsockname())

    def serve(self) -> None:
        """Begins to accept."""
        self._pause = None
        self._is_serving = True
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept, _BATCH)

    def step_aside(self) -> None:
        """Leaves new connections to whoever listens beside this, if it may be shared."""
        if self._is_shared and self._sock.fileno() >= 0:
            reuseport.step_aside(self._sock)

    def close(self, *, serve_backlog: bool = False) -> None:
        """Stops listening; connections that the kernel had already accepted are served if asked."""
        if self._sock.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        if self._is_serving:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            if serve_backlog:
                self._accept(sockets.BACKLOG + 1)
            if self._pause is not None:
                self._pause.cancel()
        self._sock.close()

    def _accept(self, limit: int) -> None:
        for _ in range(limit):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._back_off(error)
                    return
                continue  # that connection broke before it was accepted
            sock.setblocking(False)
            self._on_accept(self.role, sock, SockAddr.of(address))

    def _back_off(self, error: OSError) -> None:
        """The connection stays in the kernel's queue; spinning on it would starve the others."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._pause = self._clock.call_later(_BACK_OFF_S, self.serve)
        self._on_exhausted(error)
