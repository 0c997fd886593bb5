# SPDX-License-Identifier: Apache-2.0
"""Windows: who stalls stops only himself, memory is bounded, nothing is lost or reordered."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import DataFrame

from tests.support.apps import FIN, RST
from tests.support.frames import INITIAL_WINDOW, MAX_FRAME
from tests.support.plane import SERVER, forward, inbound_key, through
from tests.support.wait import settle, until
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from tests.support.apps import Tcp
    from tests.support.net import Mesh, Net
    from tests.support.plane import Plane, Planes
    from tests.support.wire import Wire

WINDOW = 4 << 20
CHUNK = 16 * 16384  # the largest read
KERNEL = 12 << 20  # what socket buffers of a stalled connection may hold, generously
PATTERN = random.Random(0).randbytes(300_000)


def carried(plane: Plane) -> int:
    """Bytes passed on toward the upstream by the only connection."""
    (view,) = plane.engine.connections()
    return view.upstream_bytes


@pytest.mark.spec("dataplane-63")
async def test_stalled_reader_of_one_connection_stops_no_other(mesh: Mesh) -> None:
    stalling, deaf = await mesh.connect()
    stalling.send(bytes(8 * WINDOW))
    await until(lambda: carried(mesh.client) >= WINDOW, "a full window")

    user, app = await mesh.connect()
    user.send(b"ping")
    assert await app.read(4) == b"ping"
    app.send(b"pong")

    assert await user.read(4) == b"pong"
    assert len(mesh.client.engine.tunnels()) == 1
    stalling.close()
    deaf.close()


async def test_sixteen_stalled_applications_do_not_stop_the_seventeenth(
    server: Plane, net: Net
) -> None:
    deaf, app = await net.app(), await net.app()
    server.decide = lambda question: forward(
        app.address if inbound_key(question).authority == "app:1" else deaf.address
    )
    tunnel = await net.tunnel(server)
    for _ in range(16):
        stream = tunnel.connect()
        await tunnel.status(stream)
        await tunnel.send(stream, bytes(WINDOW))

    stream = tunnel.connect(authority="app:1")
    await tunnel.status(stream)
    await tunnel.send(stream, b"through")

    assert await (await app.accept()).read(7) == b"through"


async def test_sixteen_stalled_users_do_not_stop_the_seventeenth(client: Plane, net: Net) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)
    crowd = [await net.user(client) for _ in range(17)]
    tunnel = await server.tunnel()
    await tunnel.asked(17)
    streams = sorted(tunnel.headers)
    for stream in streams[:-1]:
        await tunnel.send(stream, bytes(WINDOW))

    await tunnel.send(streams[-1], b"through")

    last = next(user for user in crowd if f'"{user.local}"' in forwarded(tunnel, streams[-1]))
    assert await last.read(7) == b"through"


def forwarded(tunnel: Wire, stream: int) -> str:
    """The `forwarded` header of a request."""
    return dict(tunnel.headers[stream])["forwarded"]


async def test_connection_credit_returns_on_receipt_and_stream_credit_on_consumption(
    server: Plane, net: Net
) -> None:
    hole = net.hole()  # nothing is consumed while the application is being dialled
    server.decide = lambda _: forward(hole)
    tunnel = await net.tunnel(server)
    streams = [tunnel.connect() for _ in range(4)]
    before = tunnel.granted(0)

    for stream in streams:
        await tunnel.send(stream, bytes(WINDOW))
    await tunnel.fence()

    assert tunnel.granted(0) - before >= 3 * WINDOW
    assert [tunnel.granted(stream) for stream in streams] == [0, 0, 0, 0]


@pytest.mark.spec("dataplane-98")
async def test_engine_takes_from_a_user_no_more_than_the_window_and_a_chunk(
    client: Plane, net: Net
) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)
    user = await net.user(client)

    user.send(bytes(16 * WINDOW))
    tunnel = await server.tunnel()
    await tunnel.body(await tunnel.asked(), WINDOW)
    await settle()

    assert tunnel.received(1) == WINDOW
    assert carried(client) <= WINDOW + CHUNK


@pytest.mark.spec("dataplane-98")
async def test_engine_grants_a_client_no_more_than_a_window_beyond_what_was_written(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await tunnel.status(stream)

    while tunnel.credit(stream):
        await tunnel.send(stream, bytes(min(tunnel.credit(stream), 1 << 20)))
        await tunnel.fence()
        await settle(5)

    assert tunnel.sent[stream] <= WINDOW + KERNEL
    assert tunnel.sent[stream] - carried(server) <= WINDOW


@pytest.mark.spec("dataplane-98")
async def test_plain_connection_holds_no_more_than_a_chunk(client: Plane, net: Net) -> None:
    app = await net.app()
    client.decide = lambda _: forward(app.address)
    user = await net.user(client)

    user.send(bytes(64 << 20))
    await app.accept()
    await settle()

    assert carried(client) <= KERNEL
    assert user.unsent >= (64 << 20) - 2 * KERNEL


async def test_stalled_reader_that_wakes_gets_everything(mesh: Mesh) -> None:
    user, app = await mesh.connect()
    sent = PATTERN * 60

    user.send(sent)
    user.end()
    await until(lambda: carried(mesh.client) >= WINDOW, "a full window")

    assert await app.read_all() == sent


@pytest.mark.spec("dataplane-95")
async def test_random_partial_windows_lose_and_reorder_nothing(client: Plane, net: Net) -> None:
    server = await net.server(settings={INITIAL_WINDOW: 0})
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    user.send(PATTERN)
    user.end()
    tunnel = await server.tunnel()
    stream = await tunnel.asked()
    rng = random.Random(1)

    granted = 0
    while granted < len(PATTERN):
        if step := rng.randint(0, 2560):
            granted += step
            tunnel.say(tunnel.make.window(stream, step))
            await tunnel.body(stream, min(granted, len(PATTERN)))

    assert await tunnel.end(stream) == PATTERN


async def test_random_sizes_of_data_arrive_in_order(server: Plane, net: Net) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()
    await tunnel.status(stream)
    rng = random.Random(2)

    sent = 0
    while sent < len(PATTERN):
        step = rng.randint(0, 2560)
        tunnel.data(stream, PATTERN[sent : sent + step])
        sent += step
    tunnel.data(stream, b"", end=True)

    assert await (await app.accept()).read_all() == PATTERN


@pytest.fixture
async def narrow(client: Plane, net: Net) -> tuple[Wire, int, Tcp]:
    """A stream whose other end gave a window of 10 bytes, and the user behind it."""
    return await net.narrow(client, 10)


async def test_settings_that_widen_the_window_apply_to_running_streams(
    narrow: tuple[Wire, int, Tcp],
) -> None:
    tunnel, stream, user = narrow
    user.send(b"0123456789abcdef")
    await tunnel.body(stream, 10)
    await tunnel.fence()
    assert tunnel.received(stream) == 10

    tunnel.say(tunnel.make.settings({INITIAL_WINDOW: 16}))

    assert await tunnel.body(stream, 16) == b"0123456789abcdef"


async def test_window_made_negative_by_settings_must_be_made_good_first(
    narrow: tuple[Wire, int, Tcp],
) -> None:
    tunnel, stream, user = narrow
    user.send(b"0123456789abcdef")
    await tunnel.body(stream, 10)

    tunnel.say(tunnel.make.settings({INITIAL_WINDOW: 0}), tunnel.make.window(stream, 10))
    await tunnel.fence()
    assert tunnel.received(stream) == 10
    tunnel.say(tunnel.make.window(stream, 6))

    assert await tunnel.body(stream, 16) == b"0123456789abcdef"


async def test_end_of_a_stream_without_window_waits_for_its_data(
    narrow: tuple[Wire, int, Tcp],
) -> None:
    tunnel, stream, user = narrow
    user.send(b"0123456789abcdef")
    user.end()
    await tunnel.body(stream, 10)
    await tunnel.fence()
    assert stream not in tunnel.ended

    tunnel.say(tunnel.make.window(stream, 6))

    assert await tunnel.end(stream) == b"0123456789abcdef"


async def test_end_needs_no_window(narrow: tuple[Wire, int, Tcp]) -> None:
    tunnel, stream, user = narrow
    user.send(b"0123456789")
    await tunnel.body(stream, 10)
    await tunnel.fence()

    user.end()

    assert await tunnel.end(stream) == b"0123456789"


@pytest.mark.parametrize("how", ["goaway", "hang up"])
async def test_user_of_a_tunnel_that_goes_while_his_window_is_shut_is_let_go(
    client: Plane, net: Net, how: str
) -> None:
    tunnel, _, user = await net.narrow(client, 0)
    user.send(b"never to leave")
    await tunnel.fence()

    if how == "goaway":
        tunnel.say(tunnel.make.goaway(0))
    else:
        tunnel.hang_up()
    assert await user.ending() in (FIN, RST)
    user.close()

    assert (await client.closed()).reason is Reason.OK


async def test_reset_of_an_application_whose_clients_window_is_shut_is_an_end(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server, settings={INITIAL_WINDOW: 0})
    stream = tunnel.connect()
    await tunnel.status(stream)

    (await app.accept()).reset()

    assert await tunnel.end(stream) == b""


@pytest.mark.parametrize(("said", "largest"), [(None, 16384), (16384, 16384), (65536, 65536)])
async def test_data_frames_are_no_larger_than_the_other_side_takes(
    client: Plane, net: Net, said: int | None, largest: int
) -> None:
    settings = {INITIAL_WINDOW: WINDOW} | ({} if said is None else {MAX_FRAME: said})
    server = await net.server(settings=settings)
    client.decide = lambda _: through(server.address)
    user = await net.user(client)

    user.send(bytes(WINDOW))
    tunnel = await server.tunnel()
    await tunnel.body(await tunnel.asked(), WINDOW)

    assert max(len(frame.data) for frame in tunnel.of(DataFrame)) <= largest


async def test_frame_of_a_whole_mebibyte_is_taken(server: Plane, net: Net) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    stream = tunnel.connect()

    tunnel.data(stream, bytes(1 << 20), end=True)

    assert len(await (await app.accept()).read_all()) == 1 << 20


async def test_peer_that_reads_nothing_stalls_its_tunnel_within_bounds(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    tunnel = await net.tunnel(server)
    streams = [tunnel.connect() for _ in range(4)]
    served = [await app.accept() for _ in streams]
    tunnel.pause()

    for tcp in served:
        tcp.send(bytes(8 << 20))
    await settle()
    taken = sum(view.downstream_bytes for view in server.engine.connections())

    assert taken <= 4 * WINDOW + KERNEL
    for tcp in served:
        tcp.close()


@pytest.mark.parametrize("window", [65_535, 1 << 20, WINDOW])
async def test_windows_are_those_of_the_settings(planes: Planes, net: Net, window: int) -> None:
    plane = await planes(
        SERVER, stream_window=window, connection_window=4 * window, frame_size=16384
    )
    tunnel = await net.tunnel(plane)

    assert tunnel.credit(1) == window
    assert 65_535 + tunnel.granted(0) == 4 * window


# --- the budget of what waits for stalled readers


async def test_over_budget_the_stream_stalled_longest_is_reset(planes: Planes, net: Net) -> None:
    hole = net.hole()
    plane = await planes(SERVER, buffer_budget=5 << 20)
    plane.decide = lambda _: forward(hole, reporter="destination")
    tunnel = await net.tunnel(plane)
    streams = [tunnel.connect() for _ in range(3)]
    await net.dialling(hole)
    for stream in streams[:2]:
        await tunnel.send(stream, bytes(2 << 20))
        await tunnel.fence()
        plane.advance(1)

    await tunnel.send(streams[2], bytes(2 << 20))

    await tunnel.reset(streams[0])
    record = await plane.closed()
    assert (record.reason, plane.event("over_budget")) == (Reason.OVER_BUDGET, 1)
    await tunnel.fence()
    assert list(tunnel.resets) == streams[:1]


async def test_budget_is_given_back_by_readers_that_wake(planes: Planes, net: Net) -> None:
    plane = await planes(SERVER, buffer_budget=5 << 20)
    app = await net.app()
    tunnel = await net.tunnel(plane)

    for count in range(1, 5):
        stream = tunnel.connect()
        await tunnel.send(stream, bytes(3 << 20), end=True)
        await plane.asked(count)
        await tunnel.fence()
        plane.answer(forward(app.address))
        assert len(await (await app.accept()).read_all()) == 3 << 20

    assert plane.event("over_budget") == 0
