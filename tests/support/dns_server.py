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
    """Answers by UDP; what it was asked is in `asked`."""

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio."""
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is none

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers."""
        query = dns.message.from_wire(data)
        (question,) = query.question
        name = question.name.to_text()
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype)))
        if not self.is_silent:
            answer = self._answer(query, name, question.rdtype)
            self._transport.sendto(answer.to_wire(), addr)

    def _answer(self, query: Message, name: str, kind: int) -> Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if found := self._sets.get((name, kind)):
            answer.answer.append(found)
        else:
            answer.authority.append(self._soa)
            if name not in self._names:
                answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer


async def serve(host: str, port: int, server: DnsServer) -> asyncio.DatagramTransport:
    """Binds it."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=(host, port))
    return transport


async def main() -> None:
    """Until it is killed."""
    await serve("127.0.0.1", int(sys.argv[1]), DnsServer(sys.argv[2:]))
    print('{"event": "ready"}', flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
