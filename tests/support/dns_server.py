# SPDX-License-Identifier: Apache-2.0
"""A DNS server of a few records: in a test's own loop, or as a program inside a pod.

dns_server.py PORT [RECORD ...]: records as `web.test. 60 A 10.0.0.1`; a TTL of 0 is never kept
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dns.message import Message
    from dns.rrset import RRset

_SOA = ". {ttl} IN SOA ns. admin. 1 3600 600 86400 {ttl}"


class DnsServer(asyncio.DatagramProtocol):
    """Answers by UDP, and by TCP with `serve_streams`; what it was asked is in `asked`."""

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio."""
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is none

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers."""
        self._last = data, addr
        answer = self._reply(data)
        if answer is None:
            return
        for stray in self.strays:
            self._transport.sendto(stray, addr)
        if self.is_brief:
            answer.flags |= dns.flags.TC
            answer.answer.clear()
        self._transport.sendto(answer.to_wire(), addr)

    def say_again(self) -> None:
        """Answers the last datagram once more."""
        self.datagram_received(*self._last)

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


async def serve(host: str, port: int, server: DnsServer) -> asyncio.DatagramTransport:
    """Binds it."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=(host, port))
    return transport


async def serve_streams(host: str, port: int, server: DnsServer) -> asyncio.Server:
    """Binds it for TCP."""
    return await asyncio.start_server(server.stream, host, port)


async def main() -> None:
    """Until it is killed."""
    server = DnsServer(sys.argv[2:])
    await serve("0.0.0.0", int(sys.argv[1]), server)
    await serve_streams("0.0.0.0", int(sys.argv[1]), server)
    print('{"event": "ready"}', flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
