# SPDX-License-Identifier: Apache-2.0
"""The CONNECT request and the responses to it."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.frames import CANCEL, INTERNAL_ERROR, REFUSED_STREAM
from tests.support.plane import CLIENT, address, forward, inbound_key, through
from ztunnel_py.dataplane.abc import RecordKind, Role
from ztunnel_py.decide.verdict import Preface, Verdict
from ztunnel_py.errors import Flag, Reason

if TYPE_CHECKING:
    from tests.support.net import Net
    from tests.support.plane import Plane
    from ztunnel_py.state.address import SockAddr

BAGGAGE = ("baggage", "k8s.namespace.name=ns")
TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00")


@pytest.mark.spec("dataplane-46")
async def test_connect_has_exactly_authority_baggage_forwarded_and_traceparent(
    client: Plane, net: Net
) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address, "10.0.0.9:8080", headers=(BAGGAGE,))

    user = await net.user(client)
    tunnel = await server.tunnel()
    headers = tunnel.headers[await tunnel.asked()]

    assert headers[:-1] == [
        (":method", "CONNECT"),
        (":authority", "10.0.0.9:8080"),
        BAGGAGE,
        ("forwarded", f'for="{user.local}"'),
    ]
    assert headers[-1][0] == "traceparent"
    assert TRACE.fullmatch(headers[-1][1])


@pytest.mark.spec("dataplane-47")
@pytest.mark.parametrize(
    ("host", "suffix"),
    [("web.shop.svc.cluster.local", ";host=web.shop.svc.cluster.local"), ("", "")],
)
async def test_forwarded_names_the_service_if_there_is_one(
    client: Plane, net: Net, host: str, suffix: str
) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address, forwarded_host=host)

    user = await net.user(client)
    tunnel = await server.tunnel()

    headers = dict(tunnel.headers[await tunnel.asked()])
    assert headers["forwarded"] == f'for="{user.local}"{suffix}'


async def test_each_connection_has_its_own_trace(client: Plane, net: Net) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)

    for _ in range(2):
        await net.user(client)
    tunnel = await server.tunnel()
    await tunnel.asked(2)

    traces = {dict(headers)["traceparent"] for headers in tunnel.headers.values()}
    assert len(traces) == 2


async def test_nothing_is_sent_before_the_response(client: Plane, net: Net) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    user.send(b"early")
    tunnel = await server.tunnel()
    stream = await tunnel.asked()

    await tunnel.fence()
    assert not tunnel.received(stream)
    tunnel.respond(stream)

    assert await tunnel.body(stream, 5) == b"early"


@pytest.mark.spec("dataplane-48")
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "401 Unauthorized"),
        (503, "503 Service Unavailable"),
        (400, "400 Bad Request"),
        (204, "204 No Content"),
        (599, "599 <unknown status code>"),
    ],
)
async def test_other_status_than_200_closes_the_connection_and_is_named(
    client: Plane, net: Net, status: int, text: str
) -> None:
    server = await net.server(responds=status)
    client.decide = lambda _: through(server.address)

    user = await net.user(client)
    record = await client.closed()

    assert await user.read_all() == b""
    assert record.reason.describe(record.detail) == f"http status: {text}"
    assert client.counts.closed == {Flag.CONNECT: 1}


async def test_tunnel_survives_a_refusal(client: Plane, net: Net) -> None:
    server = await net.server(responds=503)
    client.decide = lambda _: through(server.address)
    await (await net.user(client)).read_all()
    tunnel = await server.tunnel()
    tunnel.responds = 200

    user = await net.user(client)
    user.send(b"again")

    assert await tunnel.body(await tunnel.asked(2), 5) == b"again"
    assert len(server.tunnels) == 1


@pytest.mark.parametrize("code", [REFUSED_STREAM, INTERNAL_ERROR, CANCEL])
async def test_reset_instead_of_a_response_is_an_h2_failure(
    client: Plane, net: Net, code: int
) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()

    tunnel.say(tunnel.make.reset(await tunnel.asked(), code))
    record = await client.closed()

    assert await user.read_all() == b""
    assert record.reason is Reason.H2
    assert client.counts.closed == {Flag.H2_HANDSHAKE_FAILURE: 1}
    assert not tunnel.is_closed


async def test_connect_without_a_response_is_given_up_at_the_deadline(
    client: Plane, net: Net
) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()
    await tunnel.fence()

    client.advance(10)

    assert await tunnel.reset(stream) == CANCEL
    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.H2


async def test_informational_response_is_not_the_response(client: Plane, net: Net) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()

    tunnel.respond(stream, 103)
    tunnel.respond(stream, 200)
    tunnel.data(stream, b"after")

    assert await user.read(5) == b"after"


@pytest.mark.parametrize("status", ["", "2oo", "20", "-200"])
async def test_malformed_status_costs_only_its_stream(client: Plane, net: Net, status: str) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()

    stream = await tunnel.asked()
    tunnel.say(tunnel.make.headers(stream, [(":status", status)]))

    assert await user.read_all() == b""
    await tunnel.reset(stream)
    await tunnel.fence()


# --- the serving side


@pytest.mark.spec("dataplane-66")
async def test_other_method_than_connect_gets_400_and_no_question(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server)

    stream = tunnel.request(
        [(":method", "GET"), (":scheme", "https"), (":authority", "10.0.0.9:80"), (":path", "/")],
        end=True,
    )
    record = await server.denied()

    assert await tunnel.status(stream) == 400
    assert record.reason.describe(record.detail) == "expected method CONNECT, got GET"
    assert not server.flows


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.BAD_AUTHORITY, 400),
        (Reason.IP_MISMATCH, 400),
        (Reason.SELF_CALL, 503),
        (Reason.UNKNOWN_WORKLOAD, 503),
        (Reason.UNKNOWN_HOST, 503),
        (Reason.NO_PORT, 503),
        (Reason.NO_VIP, 503),
        (Reason.DECIDER_ERROR, 503),
    ],
)
async def test_early_denial_gets_its_status_one_record_and_no_counters(
    server: Plane, net: Net, reason: Reason, status: int
) -> None:
    server.decide = lambda _: Verdict.deny(reason, "why")
    tunnel = await net.tunnel(server)

    stream = tunnel.connect(authority="10.0.0.9")
    record = await server.denied()

    assert await tunnel.status(stream) == status
    assert tunnel.headers[stream] == [(":status", str(status))]
    assert (record.reason, record.detail) == (reason, "why")
    assert server.engine.slots() == {}


@pytest.mark.spec("dataplane-72")
async def test_policy_denial_gets_401_and_is_counted_as_opened_and_denied(
    server: Plane, net: Net
) -> None:
    hop = forward(address(1), reporter="destination").hops[0]
    server.decide = lambda _: Verdict.deny(Reason.POLICY_DENIED, "explicitly denied by: ns/x", hop)
    tunnel = await net.tunnel(server)

    stream = tunnel.connect()
    record = await server.closed()

    assert await tunnel.status(stream) == 401
    assert record.reason.describe(record.detail) == (
        "connection closed due to policy rejection: explicitly denied by: ns/x"
    )
    assert server.counts.opened == 1
    assert server.counts.closed == {Flag.DENY: 1}


@pytest.mark.spec("dataplane-73")
async def test_refusing_application_gives_503_and_flag_connect(server: Plane, net: Net) -> None:
    app = await net.app()
    app.close()
    server.decide = lambda _: forward(app.address, reporter="destination")
    tunnel = await net.tunnel(server)

    stream = tunnel.connect()
    record = await server.closed()

    assert await tunnel.status(stream) == 503
    assert record.reason.describe(record.detail) == (
        "connection failed: Connection refused (os error 111)"
    )
    assert server.counts.closed == {Flag.CONNECT: 1}


@pytest.mark.spec("dataplane-73")
async def test_silent_application_gives_503_at_the_deadline(server: Plane, net: Net) -> None:
    hole = net.hole()
    server.decide = lambda _: forward(hole, reporter="destination")
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await net.dialling(hole)

    server.advance(9.9)
    await tunnel.fence()
    assert stream not in tunnel.headers
    server.advance(0.1)

    assert await tunnel.status(stream) == 503
    record = await server.closed()
    assert record.reason.describe(record.detail) == "connection failed: deadline has elapsed"


@pytest.mark.spec("dataplane-74")
async def test_200_comes_only_once_the_application_is_connected(server: Plane, net: Net) -> None:
    hole = net.hole()
    server.decide = lambda _: forward(hole, reporter="destination")
    tunnel = await net.tunnel(server)

    stream = tunnel.connect()
    await net.dialling(hole)
    await tunnel.fence()
    assert stream not in tunnel.headers
    net.open_up(hole)

    assert await tunnel.status(stream) == 200


@pytest.mark.spec("dataplane-75")
@pytest.mark.parametrize("headers", [(BAGGAGE,), ()], ids=["enabled", "disabled"])
async def test_200_carries_the_headers_of_the_verdict_and_no_others(
    server: Plane, net: Net, headers: tuple[tuple[str, str], ...]
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address, reporter="destination", headers=headers)
    tunnel = await net.tunnel(server)

    stream = tunnel.connect()
    await tunnel.status(stream)

    assert tunnel.headers[stream] == [(":status", "200"), *headers]
    assert stream not in tunnel.ended


@pytest.mark.spec("dataplane-75")
async def test_error_response_carries_no_headers(server: Plane, net: Net) -> None:
    app = await net.app()
    app.close()
    server.decide = lambda _: forward(app.address, reporter="destination", headers=(BAGGAGE,))
    tunnel = await net.tunnel(server)

    stream = tunnel.connect()
    await tunnel.status(stream)

    assert tunnel.headers[stream] == [(":status", "503")]
    assert stream in tunnel.ended


@pytest.mark.spec("dataplane-83")
async def test_source_is_the_tcp_client_whatever_forwarded_says(server: Plane, net: Net) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address, reporter="destination")
    tunnel = await net.tunnel(server)

    tunnel.connect(("forwarded", 'for="1.2.3.4:5";host=web.shop'))
    key = inbound_key(await server.asked())
    record = await server.record(RecordKind.OPENED)

    assert key.src == tunnel.local.ip
    assert key.forwarded_host == "web.shop"
    assert record.src == tunnel.local


async def test_question_about_a_stream_carries_all_that_decides(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server)

    tunnel.connect(
        ("baggage", "a=1"),
        ("baggage", "b=2"),
        ("x-forwarded-network", "west"),
        authority="web.shop:80",
    )
    key = inbound_key(await server.asked())

    assert (key.workload, key.local, key.identity) == ("a", server.port(Role.INBOUND).ip, CLIENT)
    assert (key.authority, key.network, key.baggage) == ("web.shop:80", "west", ("a=1", "b=2"))


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ('for="1.2.3.4:5";host="web"', "web"),
        ("host=web", "web"),
        ("host=;for=x", ""),
        ("Host=web", ""),
        ("proto=http", ""),
    ],
)
async def test_forwarded_host_is_read_as_ztunnel_reads_it(
    server: Plane, net: Net, header: str, host: str
) -> None:
    tunnel = await net.tunnel(server)

    tunnel.connect(("forwarded", header))

    assert inbound_key(await server.asked()).forwarded_host == host


@pytest.mark.spec("dataplane-85")
@pytest.mark.parametrize("trace", ["0" * 55, "a" * 55, "", "00-" * 18 + "0"])
async def test_strange_traceparent_does_not_matter(server: Plane, net: Net, trace: str) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address, reporter="destination")
    tunnel = await net.tunnel(server)

    streams = [tunnel.connect(("traceparent", trace)), tunnel.connect()]

    assert [await tunnel.status(stream) for stream in streams] == [200, 200]


@pytest.mark.spec("dataplane-86")
async def test_denial_and_failure_of_a_stream_leave_the_others_alone(
    server: Plane, net: Net
) -> None:
    app, gone = await net.app(), await net.app()
    gone.close()
    verdicts = {
        "good:1": forward(app.address, reporter="destination"),
        "gone:1": forward(gone.address, reporter="destination"),
        "denied:1": Verdict.deny(Reason.UNKNOWN_HOST, "denied"),
    }
    server.decide = lambda question: verdicts[inbound_key(question).authority]
    tunnel = await net.tunnel(server)
    good = tunnel.connect(authority="good:1")
    served = await app.accept()

    bad = [tunnel.connect(authority=name) for name in ("gone:1", "denied:1")]
    assert [await tunnel.status(stream) for stream in bad] == [503, 503]
    tunnel.data(good, b"still")

    assert await served.read(5) == b"still"


async def test_refused_request_is_ended_and_reset_without_error(server: Plane, net: Net) -> None:
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST, "x")
    tunnel = await net.tunnel(server)

    stream = tunnel.connect()

    assert await tunnel.end(stream) == b""
    assert await tunnel.reset(stream) == 0


async def test_preface_of_a_verdict_comes_before_the_clients_bytes_and_is_not_counted(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    target = address(8080, "10.0.0.9")
    verdict = forward(app.address, reporter="destination")
    server.decide = lambda _: dataclasses.replace(verdict, preface=Preface(target))
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    tunnel.data(stream, b"hello", end=True)
    served = await app.accept()

    header = proxy_header(tunnel.local, target, str(CLIENT))

    assert await served.read_all() == header + b"hello"
    served.end()
    assert (await server.closed()).upstream_bytes == 5


def proxy_header(source: SockAddr, target: SockAddr, principal: str) -> bytes:
    """PROXY v2 for IPv4, with the TLV that ztunnel adds (spec dataplane, section 6.6)."""
    tlv = b"\xd0" + len(principal).to_bytes(2, "big") + principal.encode()
    ports = source.port.to_bytes(2, "big") + target.port.to_bytes(2, "big")
    body = source.ip.packed + target.ip.packed + ports + tlv
    return b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + len(body).to_bytes(2, "big") + body
