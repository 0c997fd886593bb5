# SPDX-License-Identifier: Apache-2.0
"""A DNS server of a few records: in a test's own loop, or as a program inside a pod.

dns_server.py PORT [RECORD ...]: records as `web.test. 60 A 10.0.0.1`; a TTL of 0 is never kept
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dns.message import Message
    from dns.rrset import RRset

_LARGEST = 65_535
_SOA = ". {ttl} IN SOA ns. admin. 1 3600 600 86400 {ttl}"


class DnsServer:
    """Answers by UDP and TCP; what it was asked is in `asked`."""

    def __init__(self, records: Iterable[str], negative_ttl: int = 60) -> None:
        self._sets: dict[tuple[str, int], RRset] = {}
        self._names: set[str] = set()
        for record in records:
            name, ttl, kind, data = record.split(maxsplit=3)
            found = dns.rrset.from_text(name, int(ttl), "IN", kind, data)
            known = self._sets.setdefault((name, found.rdtype), found)
            known.update(found)  # type: ignore[no-untyped-call]
            self._names.add(name)
        soa = _SOA.format(ttl=negative_ttl).split(maxsplit=4)
        self._soa = dns.rrset.from_text(soa[0], int(soa[1]), soa[2], soa[3], soa[4])
        self.asked: list[tuple[str, str]] = []
        self.is_silent = False
        self.is_brief = False
        """Datagrams only say that there is more."""
        self.rcode: dns.rcode.Rcode | None = None
        """Answers nothing but this."""
        self.strays: list[bytes] = []
        """Sent before an answer."""

    async def bind(self, host: str, port: int = 0) -> int:
        """Begins to answer; the port, which is the same for both transports."""
        listener, self._sock = _pair(host, port)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._read)
        self._streams = await asyncio.start_server(self.stream, sock=listener)
        return int(self._sock.getsockname()[1])

    def close(self) -> None:
        """Ends."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self._streams.close()

    def _read(self) -> None:
        self._take(*self._sock.recvfrom(_LARGEST))

    def _take(self, data: bytes, addr: tuple[str, int]) -> None:
        self._last = data, addr
        answer = self._reply(data)
        if answer is None:
            return
        for stray in self.strays:
            self._sock.sendto(stray, addr)
        if self.is_brief:
            answer.flags |= dns.flags.TC
            answer.answer.clear()
        self._sock.sendto(answer.to_wire(), addr)

    def say_again(self) -> None:
        """Answers the last datagram once more."""
        self._take(*self._last)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves a connection."""
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = self._reply(await reader.readexactly(size))
        if answer is not None:
            writer.write(answer.to_wire(prepend_length=True))
        await writer.drain()
        writer.close()

    def _reply(self, data: bytes) -> Message | None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name = question.name.to_text()
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype)))
        return None if self.is_silent else self._answer(query, name, question.rdtype)

    def _answer(self, query: Message, name: str, kind: int) -> Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if self.rcode is not None:
            answer.set_rcode(self.rcode)
        elif found := self._sets.get((name.lower(), kind)):
            answer.answer.append(found)
        else:
            answer.authority.append(self._soa)
            if name.lower() not in self._names:
                answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer


def _pair(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A listening socket and one for datagrams at the same port; 0: one that is free for both."""
    while True:
        listener = socket.create_server((host, port))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            datagrams.bind(listener.getsockname())
        except OSError:
            listener.close()
            datagrams.close()
            if port:
                raise
        else:
            return listener, datagrams


async def main() -> None:
    """Until it is killed."""
    server = DnsServer(sys.argv[2:])
    await server.bind("0.0.0.0", int(sys.argv[1]))
    print('{"event": "ready"}', flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
