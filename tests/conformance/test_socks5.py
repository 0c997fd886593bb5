# SPDX-License-Identifier: Apache-2.0
"""The SOCKS5 listener: negotiation, refusals, and what follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.plane import WORKLOAD, forward, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import QuestionKind, Role
from ztunnel_py.decide.key import OutboundKey
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import LookupFailedError, Reason
from ztunnel_py.state.address import SockAddr, parse_ip

if TYPE_CHECKING:
    from tests.support.apps import Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane
    from ztunnel_py.state.address import Ip

HELLO = b"\x05\x01\x00"
CONNECT_V4 = b"\x05\x01\x00\x01\x0a\x00\x00\x09\x00\x50"
SUCCESS = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
UNSUPPORTED = b"\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"
FAILURE = b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"


async def socks(net: Net, plane: Plane) -> Tcp:
    """A connection to the SOCKS5 listener."""
    return await net.dial(plane.port(Role.SOCKS5))


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (CONNECT_V4, SockAddr(parse_ip("10.0.0.9"), 80)),
        (
            b"\x05\x01\x77\x04" + bytes.fromhex("fd00" + "00" * 13 + "09") + b"\x1f\x90",
            SockAddr(parse_ip("fd00::9"), 8080),
        ),
    ],
    ids=["ipv4", "ipv6"],
)
async def test_destination_comes_from_the_request(
    client: Plane, net: Net, request_: bytes, target: SockAddr
) -> None:
    user = await socks(net, client)
    user.send(HELLO)
    assert await user.read(2) == b"\x05\x00"
    user.send(request_)
    assert await user.read(10) == SUCCESS

    question = await client.asked()

    assert question.kind is QuestionKind.OUTBOUND
    assert question.key == OutboundKey(WORKLOAD, user.local.ip, target)


async def test_success_is_said_before_anything_is_contacted(client: Plane, net: Net) -> None:
    user = await socks(net, client)

    user.send(HELLO + CONNECT_V4)

    assert await user.read(12) == b"\x05\x00" + SUCCESS
    await client.asked()
    client.answer(Verdict.deny(Reason.NO_ROUTE))
    assert await user.read_all() == b""
    assert (await client.denied()).dst == SockAddr(parse_ip("10.0.0.9"), 80)


@pytest.mark.parametrize("protocol", ["tcp", "hbone"])
async def test_bytes_after_the_negotiation_reach_the_destination(
    client: Plane, net: Net, protocol: str
) -> None:
    app, server = await net.app(), await net.server()
    client.decide = lambda _: forward(app.address) if protocol == "tcp" else through(server.address)
    user = await socks(net, client)

    user.send(HELLO + CONNECT_V4 + b"at once")
    await user.read(12)

    if protocol == "tcp":
        assert await (await app.accept()).read(7) == b"at once"
    else:
        tunnel = await server.tunnel()
        assert await tunnel.body(await tunnel.asked(), 7) == b"at once"


@pytest.mark.parametrize("size", [1, 3])
async def test_request_may_come_in_pieces(client: Plane, net: Net, size: int) -> None:
    user = await socks(net, client)
    said = HELLO + CONNECT_V4

    for start in range(0, len(said), size):
        user.send(said[start : start + size])
        await settle(2)

    assert await user.read(12) == b"\x05\x00" + SUCCESS


@pytest.mark.spec("dataplane-107")
@pytest.mark.parametrize(
    ("said", "before"),
    [
        (b"\x04\x01\x00", b""),
        (b"\x05\x00", b""),
        (b"\x05\x01\x02", b""),
        (b"\x05\x02\x01\x02", b""),
        (HELLO + b"\x05\x02\x00\x01\x0a\x00\x00\x09\x00\x50", b"\x05\x00"),
        (HELLO + b"\x05\x03\x00\x01\x0a\x00\x00\x09\x00\x50", b"\x05\x00"),
        (HELLO + b"\x04\x01\x00\x01\x0a\x00\x00\x09\x00\x50", b"\x05\x00"),
        (HELLO + b"\x05\x01\x00\x02\x0a\x00\x00\x09\x00\x50", b"\x05\x00"),
        (HELLO + b"\x05\x01\x00\x03\x03web\x00\x50", b"\x05\x00"),
    ],
    ids=[
        "bad version",
        "no methods",
        "no-auth missing",
        "no-auth missing among two",
        "bind",
        "udp",
        "bad version of the request",
        "unknown address type",
        "hostname without dns",
    ],
)
async def test_violation_is_answered_with_code_7_and_closed(
    client: Plane, net: Net, said: bytes, before: bytes
) -> None:
    user = await socks(net, client)

    user.send(said)

    assert await user.read(len(before) + 10) == before + UNSUPPORTED
    await user.ending()
    await until(lambda: client.sockets_open("source") == 0, "the gauge")
    assert not client.flows


async def test_client_that_stops_half_way_gets_code_1(client: Plane, net: Net) -> None:
    user = await socks(net, client)

    user.send(HELLO + CONNECT_V4[:5])
    user.end()

    assert await user.read_all() == b"\x05\x00" + FAILURE


async def test_client_that_says_nothing_is_let_go_at_the_deadline(client: Plane, net: Net) -> None:
    user = await socks(net, client)
    await until(lambda: client.sockets_open("source") == 1, "the accept")
    await settle()

    client.advance(10)

    assert await user.read_some_or_reset() in (b"", FAILURE)
    await user.ending()
    await until(lambda: client.sockets_open("source") == 0, "the gauge")


def named(host: bytes) -> bytes:
    """A request for port 80 of a host."""
    return b"\x05\x01\x00\x03" + bytes([len(host)]) + host + b"\x00\x50"


async def resolve(hostname: str, version: int) -> Ip:
    """Knows one host."""
    if hostname != "web.test":
        raise LookupFailedError(f"{hostname}: NXDOMAIN")
    return parse_ip("10.0.0.9" if version == 4 else "fd00::9")


@pytest.mark.spec("dataplane-108")
@pytest.mark.parametrize(("host", "found"), [("127.0.0.1", "10.0.0.9"), ("::1", "fd00::9")])
async def test_hostname_is_looked_up_in_the_clients_family_and_success_said_at_once(
    client: Plane, net: Net, host: str, found: str
) -> None:
    client.add("named", host, resolve=resolve)
    user = await net.dial(client.port(Role.SOCKS5, "named"))

    user.send(HELLO + named(b"web.test"))

    assert await user.read(12) == b"\x05\x00" + SUCCESS
    question = await client.asked()
    assert question.key == OutboundKey("named", user.local.ip, SockAddr(parse_ip(found), 80))


@pytest.mark.spec("dataplane-108")
@pytest.mark.parametrize(("name", "code"), [(b"nobody.test", 4), (b"\xff\xfe", 7), (b"", 4)])
async def test_hostname_that_is_none_is_refused(
    client: Plane, net: Net, name: bytes, code: int
) -> None:
    client.add("named", resolve=resolve)
    user = await net.dial(client.port(Role.SOCKS5, "named"))

    user.send(HELLO + named(name))

    assert await user.read_all() == b"\x05\x00" + bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])
    assert not client.flows
