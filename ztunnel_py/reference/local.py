# SPDX-License-Identifier: Apache-2.0
"""A local workload: its listeners, identity, pool, and what lives on its behalf."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.dataplane.abc import Resolve, Role
    from ztunnel_py.netns import Netns
    from ztunnel_py.reference.accept import Listener
    from ztunnel_py.reference.conn import Conn
    from ztunnel_py.reference.pool import Pool
    from ztunnel_py.reference.tls import TlsContexts
    from ztunnel_py.reference.tunnel import Tunnel
    from ztunnel_py.state.address import SockAddr


class Local:
    """Everything an engine keeps for one workload; nothing is shared between two of them."""

    def __init__(
        self, workload: str, pool: Pool, netns: Netns | None, resolve: Resolve | None
    ) -> None:
        self.id = workload
        self.resolve = resolve
        self.netns = netns
        self.pool = pool
        self.listeners: dict[Role, Listener] = {}
        self.contexts: TlsContexts | None = None
        self.conns: dict[int, Conn] = {}
        self.handshakes: dict[int, Conn] = {}
        """Connections accepted on 15008 or 15080 that have not yet said who or whereto."""
        self.served: dict[int, tuple[Tunnel, SockAddr]] = {}
        """Inbound tunnels by id, with their TCP source."""
        self.buffered = 0
        """Bytes that wait for stalled readers of its streams."""
        self.is_draining = False

    @property
    def is_idle(self) -> bool:
        """Nothing lives on its behalf, beside unused tunnels in the pool."""
        return not (self.conns or self.handshakes or self.served)

    def is_transparent(self, role: Role) -> bool:
        """Whether the role's listener lets us keep client addresses."""
        return role in self.listeners and self.listeners[role].is_transparent

    def longest_handshake(self) -> Conn:
        """The oldest handshake of the address that has most of them."""
        counts = Counter(conn.src.ip for conn in self.handshakes.values())
        (worst, _), *_ = counts.most_common(1)
        return next(conn for conn in self.handshakes.values() if conn.src.ip == worst)

    def tunnels(self) -> list[Tunnel]:
        """Established tunnels of both directions."""
        served = [tunnel for tunnel, _ in self.served.values()]
        return served + [tunnel for _, tunnel in self.pool.tunnels()]
