# SPDX-License-Identifier: Apache-2.0
"""Asks the system's DNS servers, from a client's network namespace, for what the mesh has not.

Two servers are asked at a time, the fastest first. Whoever asks what is being asked waits for the
same answer, and nobody else does. Source: spec state, section 7.8; ztunnel src/dns/forwarder.rs.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from ztunnel_py.clock import within
from ztunnel_py.dns.kept import Found, Kept
from ztunnel_py.dns.message import TTL_S, VERSIONS
from ztunnel_py.errors import LookupFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dns.message import Message
    from dns.name import Name
    from dns.rcode import Rcode
    from dns.rdatatype import RdataType

    from ztunnel_py.clock import Clock
    from ztunnel_py.dns.kept import Key
    from ztunnel_py.dns.resolv_conf import ResolvConf
    from ztunnel_py.dns.sockets import Sockets
    from ztunnel_py.state.address import Ip
    from ztunnel_py.tasks import Tasks

PORT = 53
ATTEMPTS = 2
AT_A_TIME = 2
STRAYS_MAX = 8
"""Packets of a server that are no answer to what it was asked, before it is given up."""
ANSWER_MAX = 16_384
"""Bytes of an answer by TCP; one of them takes 15 ms to read, in which nobody else is served."""
DATAGRAM_MAX = 4096
PAYLOAD = 1232
_FINAL = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
_SLOWNESS = 0.2
"""The share of the newest measurement in a server's latency."""


class NoRecordsError(LookupFailedError):
    """There is nothing to answer; `rcode` is what the client is told."""

    def __init__(self, text: str, rcode: Rcode = dns.rcode.SERVFAIL) -> None:
        super().__init__(text)
        self.rcode = rcode


class Forwarder:
    """The servers of one client."""

    def __init__(
        self,
        conf: ResolvConf,
        hosts: Mapping[str, Sequence[Ip]],
        sockets: Sockets,
        clock: Clock,
        tasks: Tasks,
        port: int = PORT,
    ) -> None:
        """`hosts` are names that no server is asked for."""
        self._conf = conf
        self._hosts = hosts
        self._clock = clock
        self._tasks = tasks
        self._kept = Kept(clock)
        self._flights: dict[Key, asyncio.Future[Message | None]] = {}
        self._servers = [
            _Server(host, port, sockets, clock, conf.timeout_s) for host in conf.servers
        ]

    async def lookup(self, name: Name, kind: RdataType) -> Found:
        """The records of a name, with all that leads to them.

        Raises:
            NoRecordsError: there are none, or that cannot be told.
        """
        found = self._written(name, kind) or self._kept.get((name, kind))
        if found is None:
            answer = await asyncio.shield(self._flight((name, kind)))
            if answer is None:
                raise NoRecordsError("request timed out or no server can be reached")
            found = Found(answer)
        rcode = found.message.rcode()
        if rcode != dns.rcode.NOERROR or not found.message.answer:
            text = dns.rcode.to_text(rcode)
            raise NoRecordsError(f"no records found: {text}", rcode)
        return found

    def _written(self, name: Name, kind: RdataType) -> Found | None:
        """What the system's own list of hosts says."""
        if not self._hosts:
            return None
        ips = self._hosts.get(name.to_text(omit_final_dot=True).lower(), ())
        texts = [str(ip) for ip in ips if ip.version == VERSIONS.get(kind)]
        if not texts:
            return None
        message = dns.message.QueryMessage()
        message.answer.append(dns.rrset.from_text(name, TTL_S, "IN", kind, *texts))
        return Found(message)

    def _flight(self, key: Key) -> asyncio.Future[Message | None]:
        """The answer that is on its way; None in the end: there is none to be had."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._fly(key, flight))
        return flight

    async def _fly(self, key: Key, flight: asyncio.Future[Message | None]) -> None:
        answer = None
        try:
            answer = await within(self._clock, self._conf.timeout_s * ATTEMPTS, self._asked(*key))
            if answer is not None and answer.rcode() in _FINAL:
                self._kept.put(key, answer)
        except TimeoutError:
            pass
        finally:
            del self._flights[key]
            flight.set_result(answer)

    async def _asked(self, name: Name, kind: RdataType) -> Message | None:
        """The first good answer; else any, once all servers have been asked."""
        edns, payload = (0, PAYLOAD) if self._conf.is_extended else (-1, None)
        query = dns.message.make_query(name, kind, use_edns=edns, payload=payload)
        for _ in range(ATTEMPTS):
            servers = sorted(self._servers, key=lambda server: server.latency_s)
            answer = await _first(servers, query)
            if answer is not None:
                return answer
        return None


async def _first(servers: Iterable[_Server], query: Message) -> Message | None:
    """The first good answer of several servers, two of which are asked at a time; else any."""
    rest, fallback = iter(servers), None
    pending: set[asyncio.Future[Message | None]] = set()
    try:
        while True:
            for server in itertools.islice(rest, AT_A_TIME - len(pending)):
                pending.add(asyncio.ensure_future(server.ask(query)))
            if not pending:
                return fallback
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for answer in (one.result() for one in done):
                if answer is not None and answer.rcode() in _FINAL:
                    return answer
                fallback = fallback or answer
    finally:
        for one in pending:
            one.cancel()


class _Server:
    """One server, and how fast it has been."""

    def __init__(
        self, host: str, port: int, sockets: Sockets, clock: Clock, timeout_s: float
    ) -> None:
        self.latency_s = 0.0
        self._reading = asyncio.Lock()
        """Large answers are read one in a turn of the loop, however many come at once."""
        self._address = host, port
        self._sockets = sockets
        self._clock = clock
        self._timeout_s = timeout_s

    async def ask(self, query: Message) -> Message | None:
        """Its answer; None: it gives none."""
        begun, took_s = self._clock.now(), self._timeout_s
        try:
            answer = await within(self._clock, self._timeout_s, self._exchange(query))
            took_s = self._clock.now() - begun
        except (OSError, EOFError, dns.exception.DNSException):
            return None
        else:
            return answer
        finally:
            self.latency_s += (took_s - self.latency_s) * _SLOWNESS

    async def _exchange(self, query: Message) -> Message | None:
        answer = await self._by_datagram(query)
        if answer is not None and answer.flags & dns.flags.TC:
            answer = await self._by_stream(query)
        return answer

    async def _by_datagram(self, query: Message) -> Message | None:
        loop = asyncio.get_running_loop()
        with self._sockets.dial(socket.SOCK_DGRAM, self._address[0]) as sock:
            sock.connect(self._address)
            sock.send(query.to_wire())
            for _ in range(STRAYS_MAX):
                answer = _read(query, await loop.sock_recv(sock, DATAGRAM_MAX))
                if answer is not None:
                    return answer
        return None

    async def _by_stream(self, query: Message) -> Message | None:
        loop = asyncio.get_running_loop()
        with self._sockets.dial(socket.SOCK_STREAM, self._address[0]) as sock:
            await loop.sock_connect(sock, self._address)
            await loop.sock_sendall(sock, query.to_wire(prepend_length=True))
            size = int.from_bytes(await receive(sock, 2), "big")
            if size > ANSWER_MAX:
                return None
            wire = await receive(sock, size)
        async with self._reading:
            await asyncio.sleep(0)  # the others' turn
            return _read(query, wire)


async def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes of a stream.

    Raises:
        EOFError: it ends before.
    """
    found = b""
    while len(found) < size:
        piece = await asyncio.get_running_loop().sock_recv(sock, size - len(found))
        if not piece:
            raise EOFError("the stream has ended")
        found += piece
    return found


def _read(query: Message, wire: bytes) -> Message | None:
    """The answer in a packet; None: it is none to this query."""
    try:
        answer = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return None
    return answer if query.is_response(answer) else None
