# SPDX-License-Identifier: Apache-2.0
"""Names outside of the mesh, at a real server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import pytest

from tests.dns.asking import PATIENCE_S, records
from tests.state.build import ip, service
from tests.support.clock import FakeClock
from tests.support.wait import until
from ztunnel_py.dns import kept
from ztunnel_py.dns.counts import Labels

if TYPE_CHECKING:
    from tests.dns.conftest import Asks

API = service("api.test", "/10.1.0.1")
FOUND = dns.flags.QR | dns.flags.RA | dns.flags.RD
FAILED = dns.flags.QR | dns.flags.RD
NOBODY = "127.0.0.2"
"""No server there."""


async def test_names_outside_of_the_mesh_are_forwarded_by_either_transport(asks: Asks) -> None:
    asked = await asks(API)

    for by in ("udp", "tcp"):
        reply = await asked.ask("web.example", by=by)
        assert records(reply) == ["web.example. A 192.0.2.1"]
        assert (reply.rcode(), reply.flags) == (dns.rcode.NOERROR, FOUND)
        assert reply.authority == []
        assert reply.edns == -1
    assert (await asked.ask("web.example", payload=1400)).payload == 1400


@pytest.mark.spec("state-107")
async def test_other_types_are_forwarded_even_of_known_names(asks: Asks) -> None:
    asked = await asks(API, service("web.example", "/10.1.0.2"))

    assert records(await asked.ask("web.example", "MX")) == ["web.example. MX 10 mail.example."]
    assert (await asked.ask("api.test", "NS")).rcode() == dns.rcode.NXDOMAIN
    assert asked.upstream.asked == [("web.example.", "MX"), ("api.test.", "NS")]


async def test_only_the_asked_name_is_forwarded(asks: Asks) -> None:
    asked = await asks(API)

    await asked.ask("web.example.shop.svc.cluster.local")

    assert asked.upstream.asked == [("web.example.shop.svc.cluster.local.", "A")]


@pytest.mark.spec("state-108")
async def test_failures_are_told_and_counted(asks: Asks) -> None:
    asked = await asks(API, timeout_s=0.1)
    labels = Labels("a", "udp", "cart", "v1")

    missing = await asked.ask("nobody.example")
    assert (missing.rcode(), missing.flags) == (dns.rcode.NXDOMAIN, FAILED | dns.rcode.NXDOMAIN)
    assert missing.answer == missing.authority == []
    assert asked.counts.failed[labels] == 1
    asked.upstream.is_silent = True
    late = await asked.ask("web.example")
    assert (late.rcode(), late.flags) == (dns.rcode.SERVFAIL, FAILED | dns.rcode.SERVFAIL)
    assert asked.counts.failed[labels] == 2
    assert asked.counts.forwarded[labels] == asked.counts.requests[labels] == 2


async def test_name_without_such_records_is_empty(asks: Asks) -> None:
    asked = await asks(API)

    reply = await asked.ask("brief.example", "AAAA", payload=1232)

    assert (reply.rcode(), reply.flags, reply.answer) == (dns.rcode.NOERROR, FAILED, [])
    assert reply.edns == -1


async def test_servers_refusal_is_passed_on(asks: Asks) -> None:
    asked = await asks(API)
    asked.upstream.rcode = dns.rcode.REFUSED

    assert (await asked.ask("web.example")).rcode() == dns.rcode.REFUSED


async def test_cut_answer_is_asked_for_again_by_tcp(asks: Asks) -> None:
    asked = await asks(API)
    asked.upstream.is_brief = True

    assert records(await asked.ask("web.example")) == ["web.example. A 192.0.2.1"]
    assert asked.upstream.asked == [("web.example.", "A")] * 2


async def test_server_that_is_not_there_delays_nobody(asks: Asks) -> None:
    asked = await asks(API, more_servers=(NOBODY, "192.0.2.77"))
    begun = time.monotonic()

    for i in range(3):
        reply = await asked.ask(f"n{i}.example")
        assert reply.rcode() == dns.rcode.NXDOMAIN

    assert time.monotonic() - begun < PATIENCE_S


async def test_server_that_hangs_delays_nobody_else(asks: Asks) -> None:
    asked = await asks(API, service("*.known.test", "/10.1.0.2"))
    asked.upstream.is_silent = True
    hanging = [asyncio.ensure_future(asked.ask(f"n{i}.example")) for i in range(50)]
    await until(lambda: len(asked.upstream.asked) >= 50, "the queries to be forwarded")
    asked.upstream.is_silent = False

    assert records(await asked.ask("x.known.test")) == ["x.known.test. A 10.1.0.2"]
    assert records(await asked.ask("web.example")) == ["web.example. A 192.0.2.1"]
    assert not any(one.done() for one in hanging)
    for one in hanging:
        one.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_clients_that_ask_the_same_wait_for_one_answer(asks: Asks) -> None:
    asked = await asks(API)
    asked.upstream.is_silent = True
    asking = [asyncio.ensure_future(asked.ask("web.example")) for _ in range(20)]
    await until(lambda: asked.proxy.n_waiting == 20, "all to wait")
    await until(lambda: len(asked.upstream.asked) == 1, "one query for all")

    asked.upstream.is_silent = False
    asked.upstream.say_again()

    for one in asking:
        assert records(await one) == ["web.example. A 192.0.2.1"]
    assert len(asked.upstream.asked) == 2, "one, and that of `say_again`"


async def test_answers_are_kept_and_grow_old(asks: Asks) -> None:
    clock = FakeClock()
    asked = await asks(API, clock=clock)
    assert (await asked.ask("web.example")).answer[0].ttl == 60

    clock.advance(20.5)
    assert (await asked.ask("WEB.example")).answer[0].ttl == 40
    assert len(asked.upstream.asked) == 1
    clock.advance(40)
    assert (await asked.ask("web.example")).answer[0].ttl == 60
    assert len(asked.upstream.asked) == 2


async def test_absence_is_kept_too_and_what_must_not_be_kept_is_not(asks: Asks) -> None:
    asked = await asks(API)

    for _ in range(2):
        assert (await asked.ask("nobody.example")).rcode() == dns.rcode.NXDOMAIN
    assert len(asked.upstream.asked) == 1
    for _ in range(2):
        assert records(await asked.ask("brief.example")) == ["brief.example. A 192.0.2.2"]
    assert len(asked.upstream.asked) == 3


async def test_kept_answers_are_bounded(asks: Asks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_MAX", 4)
    asked = await asks(API)

    for i in (0, 1, 2, 3, 4, 4, 0):
        await asked.ask(f"n{i}.example")

    assert [name for name, _ in asked.upstream.asked] == [
        f"n{i}.example." for i in (0, 1, 2, 3, 4, 0)
    ]


async def test_answers_to_something_else_are_not_believed(asks: Asks) -> None:
    asked = await asks(API)
    lie = dns.message.make_response(dns.message.make_query("web.example", "A"))
    lie.answer.append(dns.rrset.from_text("web.example.", 60, "IN", "A", "203.0.113.66"))
    asked.upstream.strays = [lie.to_wire(), b"", b"\xff" * 40, lie.to_wire()[:20]]

    assert records(await asked.ask("web.example")) == ["web.example. A 192.0.2.1"]


async def test_host_that_the_system_lists_is_not_asked_for(asks: Asks) -> None:
    asked = await asks(API, hosts={"printer.lan": [ip("10.3.0.1"), ip("fd00::1")]})

    assert records(await asked.ask("Printer.lan")) == ["Printer.lan. A 10.3.0.1"]
    assert records(await asked.ask("printer.lan", "AAAA")) == ["printer.lan. AAAA fd00::1"]
    assert asked.upstream.asked == []
    assert (await asked.ask("printer.lan", "MX")).rcode() == dns.rcode.NXDOMAIN


async def test_large_answer_is_cut_for_udp(asks: Asks) -> None:
    many = [f"many.example. 60 A 192.0.2.{i}" for i in range(200)]
    asked = await asks(API, records=many)

    reply = await asked.ask("many.example", payload=1232)

    assert reply.flags & dns.flags.TC
    assert len(reply.to_wire()) <= 1232
    whole = await asked.ask("many.example", by="tcp")
    assert len(whole.answer[0]) == 200


async def test_answer_that_is_too_large_is_a_failure(asks: Asks) -> None:
    many = [f"many.example. 60 A 10.{i // 250}.{i % 250}.1" for i in range(1100)]
    asked = await asks(API, records=many)
    asked.upstream.is_brief = True

    assert (await asked.ask("many.example", by="tcp")).rcode() == dns.rcode.SERVFAIL
