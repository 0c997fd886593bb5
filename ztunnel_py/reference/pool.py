# SPDX-License-Identifier: Apache-2.0
"""A workload's client tunnels, by key.

A tunnel is shared while it has fewer streams than the limit; misses that come together wait for
one handshake, and all of them get its error if it fails. A tunnel that nobody has asked for in a
while is let go: it closes once its last stream is over (spec dataplane, section 3).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.reference.tunnel import Tunnel
    from ztunnel_py.state.address import Ip, SockAddr


class PoolKey(NamedTuple):
    """What two connections must have in common to share a tunnel, beside their workload."""

    sans: tuple[Identity, ...]
    """Accepted identities, in order."""
    next_hop: SockAddr
    source: Ip


@dataclass(slots=True, eq=False)
class _Pooled:
    """A tunnel and who uses it."""

    tunnel: asyncio.Future[Tunnel]
    users: int = 0
    """Streams that live or are about to be opened."""
    idle: Timer | None = None


@dataclass(slots=True)
class Lease:
    """One place on a tunnel; to be given back once."""

    tunnel: Tunnel
    is_reused: bool
    give_back: Callable[[], None] = field(repr=False)


class Pool:
    """Client tunnels of one workload."""

    def __init__(self, clock: Clock, max_streams: int, idle_s: float) -> None:
        self._clock = clock
        self._max_streams = max(1, max_streams)
        self._idle_s = idle_s
        self._tunnels: dict[PoolKey, list[_Pooled]] = {}

    async def lease(self, key: PoolKey, dial: Callable[[], Awaitable[Tunnel]]) -> Lease:
        """A place on a tunnel for `key`: one that is there, one on its way, or a new one.

        Raises:
            Whatever `dial` raises, to every caller that waited for it.
        """
        pooled = self._find(key)
        is_reused = pooled is not None and pooled.tunnel.done()
        if pooled is None:
            pooled = self._add(key, dial)
        pooled.users += 1
        if pooled.idle is not None:
            pooled.idle.cancel()
            pooled.idle = None
        chosen = pooled
        try:
            # Shielded: one caller that goes away must not end the handshake of the others.
            tunnel = await asyncio.shield(chosen.tunnel)
        except BaseException:
            self._given_back(key, chosen)
            raise
        return Lease(tunnel, is_reused, lambda: self._given_back(key, chosen))

    def retire_all(self) -> None:
        """Lets every tunnel go; running streams finish."""
        for key, entries in list(self._tunnels.items()):
            for pooled in list(entries):
                self._let_go(key, pooled)

    def abort_all(self) -> None:
        """Ends every tunnel and every handshake at once."""
        for entries in self._tunnels.values():
            for pooled in entries:
                if pooled.idle is not None:
                    pooled.idle.cancel()
                if _has_tunnel(pooled):
                    pooled.tunnel.result().close()
                else:
                    pooled.tunnel.cancel()
        self._tunnels.clear()

    def tunnels(self) -> list[tuple[PoolKey, Tunnel]]:
        """Tunnels that are established."""
        return [
            (key, pooled.tunnel.result())
            for key, entries in self._tunnels.items()
            for pooled in entries
            if _has_tunnel(pooled)
        ]

    # --- inside

    def _add(self, key: PoolKey, dial: Callable[[], Awaitable[Tunnel]]) -> _Pooled:
        """A tunnel on its way, there until it fails or closes."""
        pooled = _Pooled(asyncio.ensure_future(dial()))
        self._tunnels.setdefault(key, []).append(pooled)

        def dialled(_: asyncio.Future[Tunnel]) -> None:
            if not _has_tunnel(pooled):
                self._forget(key, pooled)
            elif pooled not in self._tunnels.get(key, ()):
                pooled.tunnel.result().retire()
            else:
                closed = pooled.tunnel.result().closed
                closed.add_done_callback(lambda _: self._forget(key, pooled))

        pooled.tunnel.add_done_callback(dialled)
        return pooled

    def _find(self, key: PoolKey) -> _Pooled | None:
        for pooled in list(self._tunnels.get(key, ())):
            if pooled.tunnel.done() and not (
                _has_tunnel(pooled) and pooled.tunnel.result().is_usable
            ):
                self._forget(key, pooled)
            elif pooled.users < self._capacity(pooled):
                return pooled
        return None

    def _capacity(self, pooled: _Pooled) -> int:
        if not pooled.tunnel.done():
            return self._max_streams
        session = pooled.tunnel.result().session
        return min(self._max_streams, max(1, session.max_streams))

    def _given_back(self, key: PoolKey, pooled: _Pooled) -> None:
        pooled.users -= 1
        self._rest(key, pooled)

    def _rest(self, key: PoolKey, pooled: _Pooled) -> None:
        """An unused tunnel is let go after the idle time."""
        if pooled.users == 0 and pooled in self._tunnels.get(key, ()):
            pooled.idle = self._clock.call_later(self._idle_s, lambda: self._let_go(key, pooled))

    def _let_go(self, key: PoolKey, pooled: _Pooled) -> None:
        """Retires a tunnel; one on its way goes to those who wait for it, if somebody does."""
        if _has_tunnel(pooled):
            self._forget(key, pooled)
            pooled.tunnel.result().retire()
        elif pooled.users == 0:
            self._forget(key, pooled)
            pooled.tunnel.cancel()

    def _forget(self, key: PoolKey, pooled: _Pooled) -> None:
        if pooled.idle is not None:
            pooled.idle.cancel()
            pooled.idle = None
        entries = self._tunnels.get(key, [])
        if pooled in entries:
            entries.remove(pooled)
        if not entries:
            self._tunnels.pop(key, None)


def _has_tunnel(pooled: _Pooled) -> bool:
    task = pooled.tunnel
    return task.done() and not task.cancelled() and task.exception() is None
