# SPDX-License-Identifier: Apache-2.0
"""Which clients open connections to an application so fast that source ports could run out.

Connections to the application are made from the client's address, and each leaves a socket in
TIME_WAIT for a minute. 28,000 of them from one address are all its ports. A socket tied to the
loopback device may reuse one after a second, so busy pairs get tied. Others do not: the kernel
answers no RST to the first SYN of a tied socket, so a refusal would take a second to be noticed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.clock import Clock
    from ztunnel_py.state.address import Ip, SockAddr

_WINDOW_S = 60.0  # TIME_WAIT
_PAIRS_MAX = 10_000
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_PORTS = 28_232


class Churn:
    """Connections made per client address and application, in the current minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._threshold = _port_count() // 4
        self._since = clock.now()
        self._now: dict[tuple[Ip, SockAddr], int] = {}
        self._before: dict[tuple[Ip, SockAddr], int] = {}

    def count(self, client: Ip, app: SockAddr) -> None:
        """One more connection was made."""
        self._turn()
        if len(self._now) < _PAIRS_MAX:
            self._now[client, app] = self._now.get((client, app), 0) + 1

    def is_busy(self, client: Ip, app: SockAddr) -> bool:
        """A quarter of the ports was used in this window or the one before."""
        self._turn()
        pair = client, app
        return self._now.get(pair, 0) + self._before.get(pair, 0) >= self._threshold

    def _turn(self) -> None:
        now = self._clock.now()
        if now - self._since >= _WINDOW_S:
            is_recent = now - self._since < 2 * _WINDOW_S
            self._before, self._now = self._now if is_recent else {}, {}
            self._since = now


def _port_count() -> int:
    try:
        low, high = map(int, _PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        return _DEFAULT_PORTS
    return max(4, high - low + 1)
