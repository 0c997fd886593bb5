# SPDX-License-Identifier: Apache-2.0
"""Options of accepted and dialled sockets, read from the sockets themselves; source addresses."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support import sockets
from tests.support.plane import CLIENT, LOOPBACK, SERVER, WORKLOAD, forward, through
from tests.support.wait import until
from ztunnel_py.dataplane.abc import Role, SocketOptions

if TYPE_CHECKING:
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from ztunnel_py.state.address import SockAddr

_IP_TRANSPARENT = 19
OTHER_SOURCE = "127.0.0.77"


class Options(NamedTuple):
    """What statements 7 to 9 are about."""

    no_delay: bool
    keepalive: tuple[int, int, int] | None
    user_timeout_ms: int


def options(local: SockAddr | None = None, remote: SockAddr | None = None) -> Options:
    """Options of this process's socket with these ends."""
    with sockets.connected(local, remote) as sock:
        tcp = [
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        ]
        is_kept = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return Options(
            bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
            (tcp[0], tcp[1], tcp[2]) if is_kept else None,
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )


KEPT = Options(no_delay=True, keepalive=(180, 180, 9), user_timeout_ms=0)
UNKEPT = Options(no_delay=True, keepalive=None, user_timeout_ms=0)


@pytest.mark.spec("dataplane-7")
@pytest.mark.parametrize("role", [Role.OUTBOUND, Role.PASSTHROUGH])
async def test_captured_socket_and_its_dialled_one_are_kept_alive(
    client: Plane, net: Net, role: Role
) -> None:
    app = await net.app()
    client.decide = lambda _: forward(app.address)

    user = await net.dial(client.port(role))
    served = await app.accept()

    assert options(client.port(role), user.local) == KEPT
    assert options(served.remote, app.address) == KEPT


@pytest.mark.spec("dataplane-7")
async def test_dialled_tunnel_is_kept_alive(client: Plane, net: Net) -> None:
    server = await net.server()
    client.decide = lambda _: through(server.address)

    await net.user(client)
    tunnel = await server.tunnel()

    assert options(tunnel.remote, server.address) == KEPT


@pytest.mark.spec("dataplane-7")
async def test_socket_dialled_to_the_application_of_a_stream_is_kept_alive(
    server: Plane, net: Net
) -> None:
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    (await net.tunnel(server)).connect()

    served = await app.accept()

    assert options(served.remote, app.address) == KEPT


@pytest.mark.spec("dataplane-8")
async def test_accepted_tunnel_has_no_keepalive_because_ping_watches_it(
    server: Plane, net: Net
) -> None:
    tunnel = await net.tunnel(server)

    assert options(tunnel.remote, tunnel.local) == UNKEPT


async def test_accepted_socks_connection_has_no_keepalive(client: Plane, net: Net) -> None:
    user = await net.dial(client.port(Role.SOCKS5))
    await until(lambda: client.sockets_open("source") == 1, "the accept")

    assert options(user.remote, user.local) == UNKEPT


@pytest.mark.spec("dataplane-9")
async def test_user_timeout_is_the_whole_keepalive_period(planes: Planes, net: Net) -> None:
    given = SocketOptions(
        keepalive_time_s=10, keepalive_interval_s=2, keepalive_retries=5, user_timeout=True
    )
    plane = await planes(CLIENT, sockets=given)
    app = await net.app()
    plane.decide = lambda _: forward(app.address)
    user = await net.user(plane)
    served = await app.accept()

    expected = Options(no_delay=True, keepalive=(10, 2, 5), user_timeout_ms=20_000)

    assert options(user.remote, user.local) == expected
    assert options(served.remote, app.address) == expected


async def test_keepalive_can_be_off(planes: Planes, net: Net) -> None:
    plane = await planes(CLIENT, sockets=SocketOptions(keepalive=False))
    app = await net.app()
    plane.decide = lambda _: forward(app.address)

    await net.user(plane)
    served = await app.accept()

    assert options(served.remote, app.address) == UNKEPT


@pytest.fixture
async def transparent(planes: Planes) -> Plane:
    """An engine whose listeners let it keep client addresses."""
    plane = await planes(SERVER)
    if not plane.engine.is_transparent(WORKLOAD, Role.INBOUND):
        pytest.skip("IP_TRANSPARENT needs CAP_NET_ADMIN: run as root to test client addresses")
    return plane


@pytest.mark.spec("dataplane-76")
async def test_application_sees_the_address_of_the_tunnels_client(
    transparent: Plane, net: Net
) -> None:
    app = await net.app()
    transparent.decide = lambda _: forward(app.address, keep_source=True)
    (await net.tunnel(transparent, source=OTHER_SOURCE)).connect()

    served = await app.accept()

    assert str(served.remote.ip) == OTHER_SOURCE


@pytest.mark.spec("dataplane-76")
@pytest.mark.parametrize(
    ("orig_src", "keep_source"), [(False, True), (None, False)], ids=["listener", "verdict"]
)
async def test_application_sees_a_local_address_where_none_may_be_kept(
    planes: Planes, net: Net, orig_src: bool | None, keep_source: bool
) -> None:
    plane = await planes(SERVER, orig_src=orig_src)
    app = await net.app()
    plane.decide = lambda _: forward(app.address, keep_source=keep_source)
    (await net.tunnel(plane, source=OTHER_SOURCE)).connect()

    served = await app.accept()

    assert str(served.remote.ip) == LOOPBACK


async def test_application_sees_the_address_of_a_plaintext_client(
    transparent: Plane, net: Net
) -> None:
    app = await net.app()
    transparent.decide = lambda _: forward(app.address, keep_source=True)
    await net.dial(transparent.port(Role.PASSTHROUGH), OTHER_SOURCE)

    served = await app.accept()

    assert str(served.remote.ip) == OTHER_SOURCE


@pytest.mark.spec("dataplane-77")
async def test_application_at_the_clients_own_address_is_dialled_without_binding(
    transparent: Plane, net: Net
) -> None:
    app = await net.app()
    transparent.decide = lambda _: forward(app.address, keep_source=True)
    tunnel = await net.tunnel(transparent)
    assert tunnel.local.ip == app.address.ip

    tunnel.connect()
    served = await app.accept()

    with sockets.connected(served.remote, app.address) as dialled:
        assert not dialled.getsockopt(socket.SOL_IP, _IP_TRANSPARENT)
