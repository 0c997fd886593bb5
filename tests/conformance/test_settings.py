# SPDX-License-Identifier: Apache-2.0
"""What an engine says first: ClientHello, HTTP/2 settings; and that it answers PINGs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hyperframe.frame import PingFrame, SettingsFrame, WindowUpdateFrame

from tests.support.client_hello import (
    EARLY_DATA,
    PRE_SHARED_KEY,
    SERVER_NAME,
    SESSION_TICKET,
    ClientHello,
)
from tests.support.frames import (
    ENABLE_PUSH,
    INITIAL_WINDOW,
    MAX_FRAME,
    MAX_HEADER_LIST,
    MAX_STREAMS,
)
from tests.support.plane import through
from tests.support.wait import until

if TYPE_CHECKING:
    from hyperframe.frame import Frame

    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire


def first_flight(tunnel: Wire) -> list[Frame]:
    """SETTINGS and WINDOW_UPDATE, in the order they came in."""
    return [one for one in tunnel.frames if not (isinstance(one, PingFrame) or "ACK" in one.flags)]


@pytest.mark.spec("dataplane-60")
async def test_client_begins_with_settings_and_a_connection_window(client: Plane, net: Net) -> None:
    server = await net.server(responds=None)
    client.decide = lambda _: through(server.address)

    await net.user(client)
    tunnel = await server.tunnel()
    await tunnel.asked()

    settings, window = first_flight(tunnel)[:2]
    assert isinstance(settings, SettingsFrame)
    assert settings.settings == {
        ENABLE_PUSH: 0,
        INITIAL_WINDOW: 4194304,
        MAX_FRAME: 1048576,
        MAX_HEADER_LIST: 16384,
    }
    assert isinstance(window, WindowUpdateFrame)
    assert (window.stream_id, window.window_increment) == (0, 16711681)


@pytest.mark.spec("dataplane-61")
async def test_server_begins_with_settings_and_a_connection_window(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server)

    settings, window = first_flight(tunnel)
    assert isinstance(settings, SettingsFrame)
    assert settings.settings == {
        MAX_STREAMS: 200,
        INITIAL_WINDOW: 4194304,
        MAX_FRAME: 1048576,
        MAX_HEADER_LIST: 65536,
    }
    assert isinstance(window, WindowUpdateFrame)
    assert (window.stream_id, window.window_increment) == (0, 16711681)


@pytest.mark.spec("dataplane-64", "ops-39")
async def test_client_hello_names_no_server_offers_h2_and_resumes_nothing(
    client: Plane, net: Net
) -> None:
    hellos = []
    server = await net.server()
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    await server.tunnel()  # a session that could be resumed
    user.close()
    await client.closed()
    listener = await net.app()
    client.decide = lambda _: through(listener.address)

    for _ in range(2):
        user = await net.user(client)
        hellos.append(ClientHello.parse(await (tcp := await listener.accept()).read_some()))
        tcp.close()
        await user.ending()

    for hello in hellos:
        assert SERVER_NAME not in hello.extensions
        assert hello.alpn == ["h2"]
        assert SESSION_TICKET not in hello.extensions
        assert PRE_SHARED_KEY not in hello.extensions
        assert EARLY_DATA not in hello.extensions


@pytest.mark.spec("dataplane-62")
async def test_silent_client_gets_a_ping_at_10_s_and_is_let_go_20_s_later(
    server: Plane, net: Net
) -> None:
    tunnel = await net.tunnel(server)
    tunnel.answers_pings = False

    server.advance(9.9)
    await tunnel.fence()
    assert not pings(tunnel)
    server.advance(0.1)
    await until(lambda: len(pings(tunnel)) == 1, "a PING")
    server.advance(19.9)
    await tunnel.fence()
    assert not tunnel.is_closed
    server.advance(0.1)

    await tunnel.closed()
    assert server.event("ping_timeouts") == 1


async def test_silent_server_gets_a_ping_at_10_s_and_is_let_go_20_s_later(
    client: Plane, net: Net
) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)
    user = await net.user(client)
    tunnel = await server.tunnel()
    await tunnel.fence()
    tunnel.answers_pings = False

    client.advance(10)
    await until(lambda: len(pings(tunnel)) == 1, "a PING")
    client.advance(20)

    await tunnel.closed()
    await user.read_all()
    assert client.event("ping_timeouts") == 1


async def test_ping_is_repeated_10_s_after_its_ack(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server)

    for _ in range(3):
        server.advance(10)
        await tunnel.fence()

    assert len(pings(tunnel)) == 3
    assert not tunnel.is_closed


async def test_ping_of_the_other_side_is_answered_with_its_payload(server: Plane, net: Net) -> None:
    tunnel = await net.tunnel(server)

    tunnel.say(tunnel.make.ping(b"01234567"))
    await tunnel.fence()

    acks = [one.opaque_data for one in tunnel.of(PingFrame) if "ACK" in one.flags]
    assert acks.count(b"01234567") == 1


def pings(tunnel: Wire) -> list[PingFrame]:
    """PINGs of the engine."""
    return [ping for ping in tunnel.of(PingFrame) if "ACK" not in ping.flags]
