# SPDX-License-Identifier: Apache-2.0
"""Ends and breaks: each direction ends by itself, what breaks on one side ends on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.apps import FIN
from tests.support.frames import (
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
)
from tests.support.net import Mesh
from tests.support.plane import forward, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import RecordKind, Role
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from tests.support.apps import Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire

    Ends = tuple[Tcp, Tcp]

BIG = b"0123456789abcdef" * (5 << 16)  # 5 MiB: more than a stream window


@pytest.fixture(params=["tcp", "plaintext", "hbone"])
async def joined(request: pytest.FixtureRequest, client: Plane, server: Plane, net: Net) -> Ends:
    """A user and an application, joined by one engine or by two."""
    app = await net.app()
    if request.param == "hbone":
        return await Mesh(client, server, net, app).connect()
    role = Role.OUTBOUND if request.param == "tcp" else Role.PASSTHROUGH
    client.decide = lambda _: forward(app.address)
    user = await net.dial(client.port(role))
    return user, await app.accept()


@pytest.fixture(params=["user first", "application first"])
def order(request: pytest.FixtureRequest, joined: Ends) -> Ends:
    """Who ends first, who ends second."""
    user, app = joined
    return (user, app) if request.param == "user first" else (app, user)


async def closings(client: Plane, server: Plane) -> set[Reason]:
    """Reasons of the connections' ends, once each has one."""
    for plane in (client, server):
        if opened := len(plane.of(RecordKind.OPENED)):
            await plane.closed(opened)
    return {one.reason for plane in (client, server) for one in plane.of(RecordKind.CLOSED)}


@pytest.mark.spec("dataplane-92")
async def test_end_passes_and_the_other_direction_goes_on(
    order: Ends, client: Plane, server: Plane
) -> None:
    first, second = order

    first.send(b"question")
    first.end()
    assert await second.read_all() == b"question"
    second.send(b"first answer, ")
    assert await first.read(14) == b"first answer, "
    second.send(b"second answer")
    second.end()

    assert await first.read_all() == b"second answer"
    assert await closings(client, server) == {Reason.OK}


@pytest.mark.spec("dataplane-92")
async def test_much_data_arrives_before_and_after_an_end(
    order: Ends, client: Plane, server: Plane
) -> None:
    first, second = order

    first.send(BIG)
    first.end()
    assert await second.read_all() == BIG
    second.send(BIG)
    second.end()

    assert await first.read_all() == BIG
    assert await closings(client, server) == {Reason.OK}


async def test_both_may_end_at_once(joined: Ends, client: Plane, server: Plane) -> None:
    user, app = joined

    for tcp in joined:
        tcp.send(b"bye")
        tcp.end()

    assert await user.read_all() == await app.read_all() == b"bye"
    assert await closings(client, server) == {Reason.OK}


async def test_end_without_data_passes(order: Ends, client: Plane, server: Plane) -> None:
    first, second = order

    first.end()
    assert await second.read_all() == b""
    second.end()

    assert await first.read_all() == b""
    assert await closings(client, server) == {Reason.OK}


async def test_application_may_speak_first(joined: Ends) -> None:
    user, app = joined

    app.send(b"220 ready")
    assert await user.read(9) == b"220 ready"
    user.send(b"HELO")

    assert await app.read(4) == b"HELO"


@pytest.mark.spec("dataplane-93")
async def test_reset_reaches_the_other_side_as_an_orderly_end(
    order: Ends, client: Plane, server: Plane
) -> None:
    first, second = order

    first.send(b"last words")
    assert await second.read(10) == b"last words"
    first.reset()

    assert await second.ending() == FIN
    second.end()
    assert await closings(client, server) == {Reason.OK}


async def test_writing_to_a_side_that_was_reset_is_no_error(
    order: Ends, client: Plane, server: Plane
) -> None:
    first, second = order
    second.send(b"hello")
    assert await first.read(5) == b"hello"  # connected all the way
    first.reset()
    await second.read_all()

    second.send(b"x" * 100_000)
    second.end()

    assert await closings(client, server) == {Reason.OK}


async def test_reset_of_a_side_that_is_written_to_ends_the_writer(
    order: Ends, client: Plane, server: Plane
) -> None:
    first, second = order

    second.send(BIG * 4)  # stalls: nobody reads
    first.send(b"x")
    await second.read(1)
    first.reset()

    await second.ending()
    second.close()
    assert await closings(client, server) == {Reason.OK}


# --- one stream, seen from the wire


@pytest.fixture
async def served(server: Plane, net: Net) -> tuple[Wire, int, Tcp]:
    """A scripted client's stream, and the application behind it."""
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await tunnel.status(stream)
    return tunnel, stream, await app.accept()


@pytest.fixture
async def asked(client: Plane, net: Net) -> tuple[Wire, int, Tcp]:
    """A scripted server's stream, and the user behind it."""
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    stream = await tunnel.asked()
    tunnel.respond(stream)
    return tunnel, stream, user


@pytest.fixture(params=["asked", "served"])
def side(
    request: pytest.FixtureRequest, asked: tuple[Wire, int, Tcp], served: tuple[Wire, int, Tcp]
) -> tuple[Wire, int, Tcp]:
    """A stream and the socket it is joined with, on either side of the mesh."""
    return asked if request.param == "asked" else served


async def test_end_stream_is_an_empty_data_frame_and_comes_once(
    side: tuple[Wire, int, Tcp],
) -> None:
    tunnel, stream, tcp = side

    tcp.send(b"all")
    tcp.end()

    assert await tunnel.end(stream) == b"all"
    tunnel.data(stream, b"", end=True)
    assert await tcp.read_all() == b""
    await tunnel.fence()
    ends = [f for f in tunnel.frames if f.stream_id == stream and "END_STREAM" in f.flags]
    assert len(ends) == 1
    assert stream not in tunnel.resets


@pytest.mark.spec("dataplane-94")
@pytest.mark.parametrize("code", [NO_ERROR, CANCEL])
async def test_quiet_reset_reads_as_an_end(
    side: tuple[Wire, int, Tcp], client: Plane, server: Plane, code: int
) -> None:
    tunnel, stream, tcp = side

    tunnel.data(stream, b"before")
    tunnel.say(tunnel.make.reset(stream, code))

    assert await tcp.read_all() == b"before"
    tcp.end()
    plane = client if tcp.remote == client.port(Role.OUTBOUND) else server
    assert (await plane.closed()).reason is Reason.OK


@pytest.mark.parametrize("code", [INTERNAL_ERROR, PROTOCOL_ERROR, REFUSED_STREAM])
async def test_loud_reset_is_an_error_and_still_an_orderly_end_for_the_socket(
    side: tuple[Wire, int, Tcp], client: Plane, server: Plane, code: int
) -> None:
    tunnel, stream, tcp = side
    is_outbound = tcp.remote == client.port(Role.OUTBOUND)

    tunnel.data(stream, b"before")
    tunnel.say(tunnel.make.reset(stream, code))

    assert await tcp.read_all() == b"before"
    tcp.end()
    record = await (client if is_outbound else server).closed()
    assert record.reason is (Reason.RECEIVE if is_outbound else Reason.SEND)
    assert "io error" in record.detail


async def test_tunnel_that_goes_after_a_loud_reset_changes_nothing(
    server: Plane, served: tuple[Wire, int, Tcp]
) -> None:
    tunnel, stream, tcp = served
    tunnel.say(tunnel.make.reset(stream, INTERNAL_ERROR))
    assert await tcp.read_all() == b""

    tunnel.hang_up()
    await until(lambda: not server.engine.tunnels(), "the tunnel to go")
    tcp.end()

    assert (await server.closed()).reason is Reason.SEND


async def test_stream_closed_reset_is_a_broken_pipe_and_quiet(
    side: tuple[Wire, int, Tcp], client: Plane, server: Plane
) -> None:
    tunnel, stream, tcp = side

    tunnel.say(tunnel.make.reset(stream, STREAM_CLOSED))

    assert await tcp.read_all() == b""
    tcp.end()
    plane = client if tcp.remote == client.port(Role.OUTBOUND) else server
    assert (await plane.closed()).reason is Reason.OK


async def test_socket_that_writes_after_a_quiet_reset_finds_nobody(
    side: tuple[Wire, int, Tcp], client: Plane, server: Plane
) -> None:
    tunnel, stream, tcp = side
    tunnel.say(tunnel.make.reset(stream, CANCEL))
    assert await tcp.read_all() == b""

    tcp.send(b"anybody?")

    plane = client if tcp.remote == client.port(Role.OUTBOUND) else server
    assert (await plane.closed()).reason is Reason.OK
    await tunnel.fence()
    assert not tunnel.received(stream)


@pytest.mark.parametrize("code", [NO_ERROR, CANCEL])
async def test_quiet_reset_of_a_stream_that_bytes_waited_for_ends_the_connection(
    client: Plane, net: Net, code: int
) -> None:
    tunnel, stream, user = await net.narrow(client, 0)
    user.send(b"never to leave")
    await tunnel.fence()

    tunnel.say(tunnel.make.reset(stream, code))

    assert (await client.closed()).reason is Reason.OK
    await user.ending()


@pytest.mark.parametrize("ends", [True, False])
async def test_what_a_user_had_sent_outlives_his_reset(
    client: Plane, net: Net, engine_name: str, ends: bool
) -> None:
    if engine_name == "reference" and not ends:
        pytest.skip("native only: asyncio drops what the kernel has when a socket breaks")
    tunnel, stream, user = await net.narrow(client, 0)
    user.send(b"the last word")
    if ends:
        user.end()
    await settle()
    user.reset()
    tunnel.data(stream, b"x")  # meets the reset
    await tunnel.fence()
    await settle()

    tunnel.say(tunnel.make.window(stream, 100))

    assert await tunnel.end(stream) == b"the last word"
    assert (await client.closed()).reason is Reason.OK


async def test_socket_reset_after_its_stream_ended_cancels_nothing_else(
    side: tuple[Wire, int, Tcp],
) -> None:
    tunnel, stream, tcp = side
    tunnel.data(stream, b"", end=True)
    assert await tcp.read_all() == b""

    tcp.reset()

    assert await tunnel.end(stream) == b""
    await tunnel.fence()
    assert not tunnel.is_closed


async def test_last_bytes_that_nobody_can_take_end_their_stream_without_a_reset(
    side: tuple[Wire, int, Tcp], client: Plane, server: Plane
) -> None:
    tunnel, stream, tcp = side
    tcp.reset()
    assert await tunnel.end(stream) == b""

    tunnel.data(stream, b"the last", end=True)

    plane = client if tcp.remote == client.port(Role.OUTBOUND) else server
    assert (await plane.closed()).reason is Reason.OK
    await tunnel.fence()
    assert stream not in tunnel.resets


async def test_data_and_end_in_one_frame_arrive(side: tuple[Wire, int, Tcp]) -> None:
    tunnel, stream, tcp = side

    tunnel.data(stream, b"all of it", end=True)

    assert await tcp.read_all() == b"all of it"


async def test_empty_and_padded_data_frames_carry_what_they_say(
    side: tuple[Wire, int, Tcp],
) -> None:
    tunnel, stream, tcp = side

    for piece in (b"", b"one", b"", b"two"):
        tunnel.say(tunnel.make.data(stream, piece, padding=200))

    assert await tcp.read(6) == b"onetwo"


async def test_data_sent_before_the_response_is_delivered_after_it(server: Plane, net: Net) -> None:
    app = await net.app()
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    tunnel.data(stream, b"eager", end=True)
    await server.asked()
    await tunnel.fence()

    server.answer(forward(app.address))

    assert await (await app.accept()).read_all() == b"eager"


async def test_stream_reset_before_the_verdict_is_never_dialled(server: Plane, net: Net) -> None:
    app = await net.app()
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await server.asked()
    tunnel.say(tunnel.make.reset(stream))
    await tunnel.fence()

    server.answer(forward(app.address, reporter="destination"))

    assert (await server.denied()).reason is Reason.H2
    assert not app.accepted


# --- what had arrived when something broke


@pytest.mark.parametrize("ending", ["end", "reset", "hang up"])
async def test_what_arrived_before_a_stream_broke_is_still_read(
    side: tuple[Wire, int, Tcp], ending: str
) -> None:
    tunnel, stream, tcp = side
    await tunnel.send(stream, BIG[: 3 << 20])  # more than the socket takes: some of it waits
    await tunnel.fence()

    if ending == "end":
        tunnel.data(stream, b"", end=True)
    elif ending == "reset":
        tunnel.say(tunnel.make.reset(stream, CANCEL))
    else:
        tunnel.hang_up()

    assert await tcp.read_all() == BIG[: 3 << 20]


async def test_what_was_written_before_a_socket_was_closed_still_leaves(
    side: tuple[Wire, int, Tcp],
) -> None:
    tunnel, stream, tcp = side
    await tunnel.fence()
    tunnel.pause()
    tcp.send(BIG[: 3 << 20])
    await until(lambda: tcp.unsent == 0, "the bytes to leave")
    await settle()

    tcp.end()
    tunnel.resume()

    assert await tunnel.end(stream) == BIG[: 3 << 20]
