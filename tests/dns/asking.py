# SPDX-License-Identifier: Apache-2.0
"""A DNS server of one client on loopback, what it forwards to, and questions to it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dns.message
import dns.rdatatype

from tests.state.build import pod
from tests.support.dns_server import DnsServer
from ztunnel_py.clock import LoopClock
from ztunnel_py.dns import answer, names
from ztunnel_py.dns.counts import Counts
from ztunnel_py.dns.forward import Forwarder, receive
from ztunnel_py.dns.proxy import DnsProxy
from ztunnel_py.dns.resolv_conf import ResolvConf
from ztunnel_py.dns.server import Server
from ztunnel_py.dns.sockets import Sockets
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dns.message import Message

    from ztunnel_py.clock import Clock
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.store import Store

INFO = WorkloadInfo("cart-0", "shop", "cart")
CLIENT = pod(
    "cart-0",
    "10.0.0.1",
    namespace="shop",
    service_account="cart",
    canonical_name="cart",
    canonical_revision="v1",
)
HOSTS = ("127.0.0.1", "::1")
RECORDS = (
    "web.example. 60 A 192.0.2.1",
    "web.example. 60 AAAA 2001:db8::9",
    "web.example. 60 MX 10 mail.example.",
    "brief.example. 0 A 192.0.2.2",
    "alias.example. 60 CNAME web.example.",
)
PATIENCE_S = 5.0


@dataclass
class Asking:
    """What surrounds one client in a test."""

    store: Store
    upstream: DnsServer
    proxy: DnsProxy
    counts: Counts
    tasks: Tasks
    server: Server

    async def ask(
        self,
        name: str,
        kind: str = "A",
        *,
        by: str = "udp",
        host: str = HOSTS[0],
        payload: int | None = None,
    ) -> Message:
        """What a client is answered."""
        query = dns.message.make_query(name, kind, payload=payload)
        reply = dns.message.from_wire(await self.say(query.to_wire(), by=by, host=host))
        assert query.is_response(reply)
        return reply

    async def say(self, wire: bytes, *, by: str = "udp", host: str = HOSTS[0]) -> bytes:
        """The bytes that bytes are answered with."""
        exchange = self._by_udp(wire, host) if by == "udp" else self._by_tcp(wire, host)
        return await asyncio.wait_for(exchange, PATIENCE_S)

    async def _by_udp(self, wire: bytes, host: str) -> bytes:
        with client(socket.SOCK_DGRAM, host) as sock:
            sock.connect(self.server.datagrams[HOSTS.index(host)].address)
            sock.send(wire)
            return await asyncio.get_running_loop().sock_recv(sock, 65535)

    async def _by_tcp(self, wire: bytes, host: str) -> bytes:
        with await self.connect(host) as sock:
            return await exchange(sock, wire)

    async def connect(self, host: str = HOSTS[0]) -> socket.socket:
        """A connection to the server."""
        sock = client(socket.SOCK_STREAM, host)
        address = self.server.streams[HOSTS.index(host)].address
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError:
            sock.close()
            raise
        return sock

    async def close(self) -> None:
        """Ends everything."""
        self.server.stop()
        await self.tasks.done()
        self.upstream.close()


def client(kind: socket.SocketKind, host: str) -> socket.socket:
    """A socket of a client."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.socket(family, kind | socket.SOCK_NONBLOCK)


async def exchange(sock: socket.socket, wire: bytes) -> bytes:
    """One query and its reply on a connection."""
    await asyncio.get_running_loop().sock_sendall(sock, framed(wire))
    return await reply_on(sock)


async def reply_on(sock: socket.socket) -> bytes:
    """The next reply on a connection."""
    return await receive(sock, int.from_bytes(await receive(sock, 2), "big"))


async def has_ended(sock: socket.socket) -> bool:
    """Whether the server hangs up, whatever it had not read yet."""
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 5) == b""
    except ConnectionResetError:
        return True


def framed(wire: bytes) -> bytes:
    """A message as a connection carries it."""
    return len(wire).to_bytes(2, "big") + wire


async def begin(
    store: Store,
    *,
    settings: answer.Settings | None = None,
    search: tuple[names.Labels, ...] | None = None,
    records: Sequence[str] = RECORDS,
    more_servers: tuple[str, ...] = (),
    hosts: Mapping[str, Sequence[Ip]] | None = None,
    clock: Clock | None = None,
    timeout_s: float = PATIENCE_S,
) -> Asking:
    """Starts a server for `cart-0` of `shop`, and one that it forwards to."""
    upstream = DnsServer(records)
    port = await upstream.bind("127.0.0.1")
    tasks, counts, clock = Tasks(), Counts(), clock or LoopClock()
    conf = ResolvConf((*more_servers, "127.0.0.1"), (), timeout_s)
    forwarder = Forwarder(conf, hosts or {}, Sockets(), clock, tasks, port)
    settings = settings or answer.Settings(names.parse("cluster.local"))
    proxy = DnsProxy(INFO, store, settings, forwarder, counts, clock, search)
    server = Server([(host, 0) for host in HOSTS], Sockets(), proxy, clock, tasks)
    server.serve()
    return Asking(store, upstream, proxy, counts, tasks, server)


def records(reply: Message) -> list[str]:
    """The answers as lines `owner type data`, sorted within a set."""
    return [
        f"{one.name} {dns.rdatatype.to_text(one.rdtype)} {text}"
        for one in reply.answer
        for text in sorted(str(data) for data in one)
    ]
