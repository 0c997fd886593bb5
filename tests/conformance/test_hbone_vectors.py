# SPDX-License-Identifier: Apache-2.0
"""The test vectors of docs/hbone.md: they say what is claimed, and engines hear and say that."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame

from tests.support import vectors
from tests.support.plane import CLIENT, address, forward, inbound_key, through
from tests.support.wait import until
from ztunnel_py.dataplane.abc import DrainMode, Role
from ztunnel_py.decide.verdict import FORWARDED_NETWORK, Action, Preface
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.reference.proxy_protocol import header
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from tests.support.apps import Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire

REQUESTS = [name for name in vectors.FRAMES if name.startswith("connect_")]
OF_ONE_CONNECTION = {"forwarded", "traceparent"}
"""Headers that differ each time."""


@pytest.mark.parametrize("name", vectors.FRAMES)
def test_frames_say_what_stands_beside_them(name: str) -> None:
    assert vectors.read(vectors.frame_bytes(name)) == vectors.says(name)


@pytest.mark.parametrize("name", vectors.PROXY_V2)
def test_proxy_header_says_what_stands_beside_it_and_is_made_so(name: str) -> None:
    vector, data = vectors.PROXY_V2[name], vectors.proxy_bytes(name)
    source, destination = (SockAddr.parse(vector[end]) for end in ("source", "destination"))
    identity = Identity.parse(vector["identity"]) if vector["identity"] else None
    is_mixed = source.ip.version != destination.ip.version

    assert header(source, destination, identity) == data
    assert vectors.read_proxy(data) == {
        "source": None if is_mixed else source,
        "destination": None if is_mixed else destination,
        "identity": vector["identity"],
    }


async def spoken(server: Plane, net: Net) -> Wire:
    """A client's connection on which only bytes of vectors are said by the test."""
    tunnel = await net.raw_tunnel(server.port(Role.INBOUND), net.certify(CLIENT))
    tunnel.say(vectors.frame_bytes("client_first_flight"))
    return tunnel


def first_flight(tunnel: Wire) -> list[vectors.Said]:
    """What the engine said first, whether or not it heard our SETTINGS meanwhile."""
    ours = [frame for frame in tunnel.frames if "ACK" not in frame.flags]
    return [vectors.told(frame) for frame in ours[:2]]


@pytest.mark.parametrize("name", REQUESTS)
async def test_server_hears_the_request_and_answers_as_the_vectors_do(
    name: str, server: Plane, net: Net
) -> None:
    app = await net.app()
    asked = dict(vectors.headers(name))
    answer = vectors.headers("response_200")[1:]
    server.decide = lambda _: forward(app.address, headers=tuple(answer))
    tunnel = await spoken(server, net)

    tunnel.say(vectors.frame_bytes(name))
    served = await app.accept()
    await until(lambda: 1 in tunnel.headers, "a response")

    key = inbound_key(await server.asked())
    assert key.identity == CLIENT
    assert key.authority == asked[":authority"]
    assert key.baggage == (asked["baggage"],)
    assert key.forwarded_host == asked["forwarded"].partition(";host=")[2]
    assert key.network == asked.get(FORWARDED_NETWORK)
    assert tunnel.headers[1] == vectors.headers("response_200")
    assert first_flight(tunnel) == vectors.says("server_first_flight")
    served.close()


@pytest.fixture
async def served(server: Plane, net: Net) -> tuple[Wire, Tcp]:
    """A connection of vectors that was answered with 200, and the application's end of it."""
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await spoken(server, net)
    tunnel.say(vectors.frame_bytes("connect_ipv4"))
    assert await tunnel.status(1) == 200
    return tunnel, await app.accept()


async def test_bytes_and_ends_pass_a_server_in_both_directions(served: tuple[Wire, Tcp]) -> None:
    tunnel, application = served

    tunnel.say(vectors.frame_bytes("data"), vectors.frame_bytes("end"))
    heard = await application.read_all()
    application.send(heard)
    application.end()
    await tunnel.end(1)

    said = [vectors.told(frame) for frame in tunnel.frames if frame.stream_id == 1][1:]
    assert heard == b"hello"
    assert said in (
        vectors.says("data") + vectors.says("end"),
        [vectors.says("data")[0] | {"flags": ["END_STREAM"]}],
    )


async def test_reset_ends_the_application_s_connection(served: tuple[Wire, Tcp]) -> None:
    tunnel, application = served

    tunnel.say(vectors.frame_bytes("data"), vectors.frame_bytes("reset"))

    assert await application.read_all() == b"hello"


async def test_ping_is_answered(served: tuple[Wire, Tcp]) -> None:
    tunnel, _ = served

    tunnel.say(vectors.frame_bytes("ping"))
    await until(lambda: bool(tunnel.of(PingFrame)), "the ack")

    assert [vectors.told(frame) for frame in tunnel.of(PingFrame)] == vectors.says("ping_ack")


async def test_drain_is_said_in_two_steps(server: Plane, served: tuple[Wire, Tcp]) -> None:
    tunnel, application = served
    tunnel.answers_pings = False

    server.engine.drain(None, DrainMode.GRACEFUL)
    await tunnel.goaway()
    await until(lambda: bool(tunnel.of(PingFrame)), "the PING behind it")
    tunnel.say(vectors.frame_bytes("drain_seen"))
    await tunnel.goaway(2)

    said = [vectors.told(frame) for frame in tunnel.frames]
    announced = said.index(vectors.says("drain_announced")[0])
    assert said[announced : announced + 2] == vectors.says("drain_announced")
    assert vectors.told(tunnel.of(GoAwayFrame)[1]) == vectors.says("drain_final")[0]
    application.close()


async def test_refusal_is_said_as_in_the_vector(server: Plane, net: Net) -> None:
    server.decide = lambda _: dataclasses.replace(
        forward(address(80)), action=Action.DENY, reason=Reason.POLICY_DENIED
    )
    tunnel = await spoken(server, net)

    tunnel.say(vectors.frame_bytes("connect_ipv4"))
    await tunnel.reset(1)

    of_it = [frame for frame in tunnel.frames if frame.stream_id == 1]
    assert [vectors.told(of_it[0], tunnel.headers[1]), vectors.told(of_it[1])] == vectors.says(
        "response_401"
    )


async def test_client_says_the_request_and_hears_the_answers(client: Plane, net: Net) -> None:
    server = await net.server(responds=None)
    wanted = vectors.headers("connect_ipv4")
    constant = tuple(one for one in wanted[2:] if one[0] not in OF_ONE_CONNECTION)
    host = dict(wanted)["forwarded"].partition(";host=")[2]
    client.decide = lambda _: through(
        server.address, dict(wanted)[":authority"], headers=constant, forwarded_host=host
    )
    user = await net.user(client)
    user.send(b"hello")
    user.end()
    tunnel = await server.tunnel()
    await tunnel.asked()

    tunnel.say(vectors.frame_bytes("response_200"))
    tunnel.say(vectors.frame_bytes("data"), vectors.frame_bytes("end"))
    heard = await user.read_all()

    assert heard == b"hello"
    assert await tunnel.end(1) == b"hello"
    assert [{"frame": "PREFACE"}, *first_flight(tunnel)] == vectors.says("client_first_flight")
    assert [name for name, _ in tunnel.headers[1]] == [name for name, _ in wanted]
    said = dict(tunnel.headers[1])
    assert all(said[name] == dict(wanted)[name] for name in said.keys() - OF_ONE_CONNECTION)
    assert said["forwarded"] == f'for="{user.local}";host={host}'


async def test_client_takes_a_refusal(client: Plane, net: Net) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    await tunnel.asked()

    tunnel.say(vectors.frame_bytes("response_401"))

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.BAD_STATUS


async def test_application_tunnel_begins_with_the_header_of_the_vector(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    target = SockAddr.parse(vectors.PROXY_V2["ipv4"]["destination"])
    verdict = forward(app.address)
    server.decide = lambda _: dataclasses.replace(verdict, preface=Preface(target))
    tunnel = await spoken(server, net)

    tunnel.say(*map(vectors.frame_bytes, ("connect_ipv4", "data", "end")))
    served = await app.accept()
    said = await served.read_all()

    assert said.endswith(b"hello")
    assert vectors.read_proxy(said.removesuffix(b"hello")) == {
        "source": tunnel.local,
        "destination": target,
        "identity": str(CLIENT),
    }
    served.close()
