# SPDX-License-Identifier: Apache-2.0
"""Queries and replies as bytes; every byte that comes in here is somebody else's.

A query whose header says that it cannot be an ordinary one is never parsed further, so nobody can
have us read thousands of records. Source: spec state, sections 7.3, 7.6 and 7.7; RFC 6891.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dns.message import Message
    from dns.name import Name
    from dns.rcode import Rcode
    from dns.rdatatype import RdataType
    from dns.rrset import RRset

    from ztunnel_py.dns.answer import Answer

QUERY_MAX = 4096
"""Bytes of a query that are read; real ones have a few hundred at most."""
TTL_S = 30
VERSIONS = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}
"""The IP version of the types that the mesh answers."""

_HEADER = struct.Struct("!6H")
_RECORDS_MAX = 8
_KEPT_FLAGS = dns.flags.RD | dns.flags.CD
_OPCODE_BITS = 0x7800
_UDP_MAX, _UDP_USUAL, _UDP_LEAST, _TCP_MAX = 65_507, 4096, 512, 65_535


class Transport(enum.Enum):
    """How a query came; the values are those of metrics."""

    UDP = "udp"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Query:
    """An ordinary query: one question."""

    message: Message
    transport: Transport

    @property
    def name(self) -> Name:
        """Whose records are asked for, as it was written."""
        return self.message.question[0].name

    @property
    def type(self) -> RdataType:
        """Which records."""
        return self.message.question[0].rdtype

    @property
    def is_internet(self) -> bool:
        """It is of the class that everybody uses."""
        return self.message.question[0].rdclass == dns.rdataclass.IN

    @property
    def limit(self) -> int:
        """Bytes that the reply may have."""
        if self.transport is Transport.TCP:
            return _TCP_MAX
        if self.message.edns < 0:
            return _UDP_USUAL
        return min(max(self.message.payload, _UDP_LEAST), _UDP_MAX)


def read(wire: bytes, transport: Transport) -> Query | bytes:
    """The query in `wire`; else the reply that it deserves, which may be none at all."""
    if len(wire) < _HEADER.size:
        return b""
    id_, flags, n_questions, *counts = _HEADER.unpack_from(wire)
    if flags & dns.flags.QR:
        return b""
    if dns.opcode.from_flags(flags) != dns.opcode.QUERY:
        return _bare(id_, flags, dns.rcode.NOTIMP)
    if n_questions != 1:
        return _bare(id_, flags, dns.rcode.SERVFAIL)
    if sum(counts) > _RECORDS_MAX:
        return _bare(id_, flags, dns.rcode.FORMERR)
    try:
        message = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError, struct.error):
        return _bare(id_, flags, dns.rcode.FORMERR)
    return Query(message, transport)


def failure(query: Query, rcode: Rcode) -> bytes:
    """The reply that has an error to tell, or with NOERROR that there is nothing."""
    reply = _response(query, dns.flags.QR)
    reply.set_rcode(rcode)
    return reply.to_wire()


def forwarded(query: Query, found: Message, age_s: int = 0) -> bytes:
    """The reply with what a server answered `age_s` seconds ago; it loses what does not fit."""
    reply = _response(query, dns.flags.QR | dns.flags.RA)
    _extend(reply, query)
    reply.answer = [_aged(one, age_s) for one in found.answer]
    reply.additional = [_aged(one, age_s) for one in found.additional]
    return reply.to_wire(max_size=query.limit, prefer_truncation=True)


class Template:
    """The mesh's reply to all queries that differ in nothing but their id.

    dnspython makes it, with one address; the records of the others differ in their last bytes.
    """

    __slots__ = ("_end", "_head", "_n_fit", "_records")

    def __init__(self, query: Query, answer: Answer) -> None:
        reply = _response(query, dns.flags.QR | dns.flags.AA | dns.flags.RA)
        owner, addresses = query.name, answer.addresses
        if answer.owner is not None:
            target = dns.name.from_text(".".join(answer.owner))
            reply.answer.append(_rrset(owner, dns.rdatatype.CNAME, target.to_text()))
            owner = target
        n_before, head, record = len(reply.answer), reply.to_wire(), b""
        if addresses:
            reply.answer.append(_rrset(owner, query.type, str(addresses[0])))
            record = reply.to_wire()[len(head) :]
        _extend(reply, query)
        self._end = reply.to_wire()[len(head) + len(record) :]
        start = record[: len(record) - len(addresses[0].packed)] if addresses else b""
        self._records = [start + address.packed for address in addresses]
        room = query.limit - len(head) - len(self._end)
        self._n_fit = min(len(addresses), room // len(record)) if addresses else 0
        flags = int(reply.flags) | (dns.flags.TC if self._n_fit < len(addresses) else 0)
        counts = (1, n_before + self._n_fit, 0, 1 if self._end else 0)
        self._head = _HEADER.pack(0, flags, *counts)[2:] + head[_HEADER.size :]

    def __len__(self) -> int:
        """Addresses."""
        return len(self._records)

    def render(self, id_: bytes, draw: Callable[[Sequence[bytes], int], Iterable[bytes]]) -> bytes:
        """A reply with the id of a query; `draw` takes so many records, in an order of its own."""
        records = self._records
        if len(records) > 1:
            return b"".join((id_, self._head, *draw(records, self._n_fit), self._end))
        return b"".join((id_, self._head, *records[: self._n_fit], self._end))


def _bare(id_: int, flags: int, rcode: Rcode) -> bytes:
    """A reply to what cannot be read: no question, nothing."""
    kept = flags & (_KEPT_FLAGS | _OPCODE_BITS)
    return _HEADER.pack(id_, dns.flags.QR | kept | rcode, 0, 0, 0, 0)


def _response(query: Query, flags: int) -> Message:
    asked = query.message
    reply = dns.message.QueryMessage(id=asked.id)
    reply.flags = dns.flags.Flag(flags | asked.flags & _KEPT_FLAGS)
    reply.question = list(asked.question)
    return reply


def _extend(reply: Message, query: Query) -> None:
    """Answers extensions with the same version and DO bit, and no options."""
    asked = query.message
    if asked.edns >= 0:
        payload = max(asked.payload, _UDP_LEAST)
        reply.use_edns(asked.edns, asked.ednsflags & dns.flags.DO, payload)


def _rrset(owner: Name, kind: RdataType, text: str) -> RRset:
    return dns.rrset.from_text(owner, TTL_S, dns.rdataclass.IN, kind, text)


def _aged(records: RRset, age_s: int) -> RRset:
    """The same records, `age_s` later."""
    if not age_s:
        return records
    return dns.rrset.from_rdata_list(records.name, max(0, records.ttl - age_s), list(records))
