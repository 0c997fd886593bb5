# SPDX-License-Identifier: Apache-2.0
"""What a server makes of queries that are none, of clients that ask a lot, and of its end."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dns.asking import (
    CLIENT,
    HOSTS,
    client,
    exchange,
    framed,
    has_ended,
    records,
    reply_on,
)
from tests.state.build import service
from tests.support.clock import FakeClock
from tests.support.wait import settle, until
from ztunnel_py.dns import message
from ztunnel_py.dns import proxy as proxies
from ztunnel_py.dns.counts import Labels
from ztunnel_py.dns.message import Transport
from ztunnel_py.dns.sockets import Sockets
from ztunnel_py.dns.streams import CONNS_MAX, IDLE_S

if TYPE_CHECKING:
    from tests.dns.asking import Asking
    from tests.dns.conftest import Asks

API = service("api.test", "/10.1.0.1")
HEADER = struct.Struct("!6H")
QUERY = dns.message.make_query("api.test", "A").to_wire()
RECORD = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x7f\x00\x00\x01"
LOOP = HEADER.pack(7, 0, 1, 0, 0, 0) + b"\xc0\x0c\x00\x01\x00\x01"
LONG = HEADER.pack(7, 0, 1, 0, 0, 0) + b"\x3f" + b"a" * 63 * 5 + b"\x00\x00\x01\x00\x01"


def rcode(wire: bytes) -> int:
    return int.from_bytes(wire[2:4], "big") & 0xF


async def is_alive(asked: Asking) -> bool:
    return records(await asked.ask("api.test")) == ["api.test. A 10.1.0.1"]


@pytest.mark.spec("state-113")
@pytest.mark.parametrize("by", ["udp", "tcp"])
async def test_odd_queries_are_told_so(asks: Asks, by: str) -> None:
    asked = await asks(API)
    two = dns.message.make_query("api.test", "A")
    two.question.append(dns.message.make_query("b.test", "A").question[0])
    none = HEADER.pack(7, 0, 0, 0, 0, 0)

    for wire, expected in (
        (two.to_wire(), dns.rcode.SERVFAIL),
        (none, dns.rcode.SERVFAIL),
        (HEADER.pack(7, dns.opcode.to_flags(dns.opcode.UPDATE), 1, 0, 0, 0), dns.rcode.NOTIMP),
        (LOOP, dns.rcode.FORMERR),
        (LONG, dns.rcode.FORMERR),
        (QUERY[:-3], dns.rcode.FORMERR),
        (HEADER.pack(7, 0, 1, 0, 0, 999) + QUERY[12:], dns.rcode.FORMERR),
        (HEADER.pack(7, 0, 1, 9, 0, 0) + QUERY[12:] + RECORD * 9, dns.rcode.FORMERR),
        (QUERY + b"\x00" * 4000, dns.rcode.FORMERR),
    ):
        reply = await asked.say(wire, by=by)
        assert reply[:2] == wire[:2]
        assert (rcode(reply), HEADER.unpack(reply)[2:]) == (expected, (0, 0, 0, 0))
    assert asked.counts.requests.total() == 0
    assert await is_alive(asked)


async def test_other_classes_are_refused(asks: Asks) -> None:
    asked = await asks(API)
    query = dns.message.make_query("version.bind", "TXT", dns.rdataclass.CH)

    reply = dns.message.from_wire(await asked.say(query.to_wire()))

    assert reply.rcode() == dns.rcode.REFUSED
    assert reply.question == query.question


async def test_replies_and_crumbs_are_not_answered(asks: Asks) -> None:
    asked = await asks(API)
    with client(socket.SOCK_DGRAM, HOSTS[0]) as sock:
        sock.connect(asked.server.datagrams[0].address)
        for wire in (b"", b"\x00", QUERY[:11], HEADER.pack(7, dns.flags.QR, 1, 0, 0, 0)):
            sock.send(wire)
        sock.send(QUERY)

        reply = await asyncio.get_running_loop().sock_recv(sock, 4096)

        assert dns.message.from_wire(QUERY).is_response(dns.message.from_wire(reply))
        await settle()
        with pytest.raises(BlockingIOError):
            sock.recv(1)


async def test_unknown_types_are_counted_under_one_label(asks: Asks) -> None:
    asked = await asks(API)
    for kind in ("TYPE65280", "TYPE65281"):
        await asked.ask("api.test", kind)

    assert dict(asked.counts.requests) == {Labels("", "udp", "cart", "v1"): 2}


@given(st.binary(max_size=80), st.integers(0, 5))
def test_any_bytes_are_a_query_or_deserve_a_reply(tail: bytes, opt: int) -> None:
    wire = HEADER.pack(7, 0x0100, 1, 0, 0, opt) + tail

    read = message.read(wire, Transport.UDP)

    if isinstance(read, bytes):
        assert len(read) == HEADER.size
    else:
        assert read.name.labels
        assert len(message.failure(read, dns.rcode.SERVFAIL)) <= len(wire)


async def test_random_bytes_harm_nobody(asks: Asks) -> None:
    asked, chance = await asks(API), random.Random(11)
    with client(socket.SOCK_DGRAM, HOSTS[0]) as sock:
        sock.connect(asked.server.datagrams[0].address)
        for i in range(500):
            wire = bytearray(QUERY)
            for _ in range(1 + i % 5):
                wire[chance.randrange(2, len(wire))] = chance.randrange(256)
            sock.send(wire if i % 2 else chance.randbytes(chance.randrange(64)))
            if i % 20 == 0:
                await settle(1)

        assert await is_alive(asked)


@pytest.mark.spec("state-112")
async def test_unknown_client_is_waited_for_and_then_told_that_it_failed(asks: Asks) -> None:
    clock = FakeClock()
    asked = await asks(API, client=False, clock=clock)
    waiting = asyncio.ensure_future(asked.ask("api.test"))
    await until(lambda: clock.pending == 1, "the query to wait")

    clock.advance(4.9)
    assert not waiting.done()
    clock.advance(0.2)
    reply = await waiting

    assert (reply.rcode(), reply.flags & dns.flags.AA) == (dns.rcode.SERVFAIL, 0)
    assert dict(asked.counts.requests) == {("a", "udp", "", ""): 1}
    waiting = asyncio.ensure_future(asked.ask("api.test"))
    await until(lambda: clock.pending == 1, "the query to wait")
    asked.store.apply([CLIENT])
    assert records(await waiting) == ["api.test. A 10.1.0.1"]


async def test_client_that_asks_a_lot_gets_failures_and_harms_nobody_else(
    asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies, "WAITING_MAX", 8)
    asked, other = await asks(API), await asks(API)
    asked.upstream.is_silent = True
    with client(socket.SOCK_DGRAM, HOSTS[0]) as sock:
        sock.connect(asked.server.datagrams[0].address)
        for i in range(100):
            sock.send(dns.message.make_query(f"n{i}.example", "A").to_wire())
        first = await asyncio.get_running_loop().sock_recv(sock, 4096)

    assert rcode(first) == dns.rcode.SERVFAIL
    await until(lambda: asked.counts.requests.total() == 100, "all to be counted")
    assert await is_alive(asked)
    assert await is_alive(other)
    assert len(asked.upstream.asked) <= 8 + 32


async def test_ten_thousand_queries_of_one_client_do_not_delay_another(asks: Asks) -> None:
    busy, calm = await asks(API), await asks(API)
    most_meanwhile = n_answered = 0

    async def flood() -> None:
        nonlocal n_answered
        loop = asyncio.get_running_loop()
        with client(socket.SOCK_DGRAM, HOSTS[0]) as sock:
            sock.connect(busy.server.datagrams[0].address)
            for _ in range(100):
                for _ in range(100):
                    sock.send(QUERY)
                for _ in range(100):
                    await loop.sock_recv(sock, 4096)
                    n_answered += 1

    flooding = asyncio.ensure_future(flood())
    while not flooding.done():
        before = n_answered
        assert await is_alive(calm)
        most_meanwhile = max(most_meanwhile, n_answered - before)
    await flooding

    assert n_answered == 10_000
    assert most_meanwhile < 200, "of the busy one, while the other waits"


async def test_queries_of_a_connection_are_answered_in_order_however_they_come(
    asks: Asks,
) -> None:
    asked = await asks(API)
    loop = asyncio.get_running_loop()
    slow = dns.message.make_query("web.example", "A")
    stream = framed(slow.to_wire()) + framed(QUERY)
    with await asked.connect() as sock:
        for piece in (stream[:1], stream[1:20], stream[20:-1]):
            await loop.sock_sendall(sock, piece)
            await settle(1)
        assert slow.is_response(dns.message.from_wire(await reply_on(sock)))

        await loop.sock_sendall(sock, stream[-1:])

        assert (await reply_on(sock))[:2] == QUERY[:2]


async def test_idle_connections_are_closed(asks: Asks) -> None:
    clock = FakeClock()
    asked = await asks(API, clock=clock)
    loop = asyncio.get_running_loop()
    with await asked.connect() as sock, await asked.connect() as slow:
        assert (await exchange(sock, QUERY))[:2] == QUERY[:2]
        await loop.sock_sendall(slow, b"\x00\x20\x00")
        await until(lambda: clock.pending == 2, "both to wait")

        clock.advance(IDLE_S + 0.1)

        assert await has_ended(sock)
        assert await has_ended(slow)


async def test_connection_that_has_been_idle_longest_makes_room(asks: Asks) -> None:
    asked = await asks(API)
    conns = [await asked.connect() for _ in range(CONNS_MAX)]
    await until(lambda: len(asked.server.streams[0]._conns) == CONNS_MAX, "all to be accepted")
    await exchange(conns[0], QUERY)

    conns.append(await asked.connect())

    assert await has_ended(conns[1])
    for sock in (conns[0], conns[2], conns[-1]):
        assert (await exchange(sock, QUERY))[:2] == QUERY[:2]
    for sock in conns:
        sock.close()


async def test_oversized_query_ends_the_connection(asks: Asks) -> None:
    asked = await asks(API)
    with await asked.connect() as sock:
        await asyncio.get_running_loop().sock_sendall(sock, b"\xff\xff" + QUERY)

        assert await has_ended(sock)
    assert await is_alive(asked)


async def test_end_waits_for_what_has_been_asked(asks: Asks) -> None:
    asked = await asks(API)
    asked.upstream.is_silent = True
    asking = [asyncio.ensure_future(asked.ask("web.example", by=by)) for by in ("udp", "tcp")]
    await until(lambda: asked.proxy.n_waiting == 2, "the queries to be forwarded")
    await until(lambda: len(asked.upstream.asked) == 1, "one query for both")
    ending = asyncio.ensure_future(asked.server.drain(5))
    await settle()
    assert not ending.done()

    asked.upstream.is_silent = False
    asked.upstream.say_again()

    for one in asking:
        assert records(await one) == ["web.example. A 192.0.2.1"]
    await ending
    with pytest.raises(ConnectionRefusedError):
        await asked.connect()


async def test_end_does_not_wait_longer_than_it_may(asks: Asks) -> None:
    asked = await asks(API)
    asked.upstream.is_silent = True
    asking = asyncio.ensure_future(asked.ask("web.example", by="tcp"))
    await until(lambda: len(asked.upstream.asked) == 1, "the query to be forwarded")

    await asked.server.drain(0.01)

    with pytest.raises((EOFError, ConnectionError)):
        await asking


def test_address_that_is_taken_is_named() -> None:
    with socket.create_server((HOSTS[0], 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="Address already in use") as caught:
            Sockets().bind(socket.SOCK_STREAM, HOSTS[0], port)
    assert caught.value.filename == f"127.0.0.1:{port}"
