# SPDX-License-Identifier: Apache-2.0
"""One DNS server per workload of this process, with servers to forward to of its own.

Source: spec state, sections 7.1 and 7.8; identity-ops, section B.8.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py import netns as namespaces
from ztunnel_py.dns import resolv_conf
from ztunnel_py.dns.counts import Counts
from ztunnel_py.dns.forward import Forwarder
from ztunnel_py.dns.proxy import DnsProxy
from ztunnel_py.dns.resolver import HOSTS, read_hosts
from ztunnel_py.dns.server import Server
from ztunnel_py.dns.sockets import Sockets
from ztunnel_py.state.address import SockAddr, parse_ip
from ztunnel_py.tasks import Tasks
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import Resolve
    from ztunnel_py.dns import answer
    from ztunnel_py.netns import Netns
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import WorkloadInfo

log = logger("ztunnel::dns")


class Settings(NamedTuple):
    """What all servers have in common."""

    addresses: Callable[[bool], tuple[tuple[str, int], ...]]
    """Where to listen, given whether there is an IPv6 loopback."""
    has_ipv6_loopback: bool
    """May be; a pod may have none."""
    answers: answer.Settings
    resolv_conf: Path
    mark: int | None
    port_reuse: bool


class Servers:
    """The servers by workload."""

    def __init__(self, store: Store, settings: Settings, clock: Clock) -> None:
        self.counts = Counts()
        """Of all of them."""
        self._store = store
        self._settings = settings
        self._clock = clock
        self._servers: dict[str, Server] = {}

    def open(self, workload: str, info: WorkloadInfo, netns: Netns | None = None) -> Resolve:
        """Binds the server of a workload; None: in our own namespace.

        Returns who looks up a name for others as its queries are answered.

        Raises:
            OSError: an address cannot be had, or nobody is known to forward to; the text says all.
        """
        settings, tasks = self._settings, Tasks()
        conf = resolv_conf.read(settings.resolv_conf)
        sockets = Sockets(netns, settings.mark, settings.port_reuse)
        forwarder = Forwarder(conf, read_hosts(HOSTS), sockets, self._clock, tasks)
        search = conf.search if netns is None else None
        proxy = DnsProxy(
            info, self._store, settings.answers, forwarder, self.counts, self._clock, search
        )
        has_ipv6 = settings.has_ipv6_loopback and (
            netns is None or namespaces.has_ipv6_loopback(netns)
        )
        try:
            server = Server(settings.addresses(has_ipv6), sockets, proxy, self._clock, tasks)
        except OSError as error:
            raise OSError(
                error.errno, f"failed to bind to address {error.filename}: {error.strerror}"
            ) from error
        self._servers[workload] = server
        for stream in server.streams:
            host, port = stream.address
            fields = {"address": Display(str(SockAddr(parse_ip(host), port)))}
            log.info("starting local DNS server", {**fields, "component": "dns"})
        return proxy.resolve

    def serve(self, workload: str) -> None:
        """Begins to answer its queries."""
        self._servers[workload].serve()

    def stop(self, workload: str) -> None:
        """Ends its server at once."""
        self._servers.pop(workload).stop()

    def step_aside(self) -> None:
        """Leaves new queries to other proxies of the same pods, if there are some."""
        for server in self._servers.values():
            server.step_aside()

    async def drain(self, limit_s: float) -> None:
        """Ends all servers, each when it has answered what it was asked, or at the limit."""
        ending = [server.drain(limit_s) for server in self._servers.values()]
        self._servers.clear()
        await asyncio.gather(*ending)
