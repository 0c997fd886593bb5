# SPDX-License-Identifier: Apache-2.0
"""Envoy as HBONE client of our inbound side and as HBONE server of our outbound side."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

import pytest

from bench import envoy
from tests.foreign.programs import LOOPBACK, free_port
from tests.support.plane import CLIENT, SERVER, address, forward, inbound_key, through
from ztunnel_py.dataplane.abc import Role
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.foreign.programs import Programs
    from tests.support.apps import App, Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane

    Connect = Callable[[], Awaitable[tuple[Tcp, Tcp]]]

BODY = random.Random(4).randbytes(6 << 20)  # more than a stream window
CROWD = 150  # more than one tunnel of Envoy takes


class Envoy:
    """Starts Envoys with certificates of the run's authority."""

    def __init__(self, programs: Programs, net: Net, folder: Path) -> None:
        self._programs = programs
        self._net = net
        self._folder = folder

    async def client(self, server: Plane) -> envoy.Place:
        """One that takes plaintext and tunnels it to our inbound side."""
        place = envoy.Place(LOOPBACK, free_port(), mark=None)
        to = (LOOPBACK, server.port(Role.INBOUND).port)
        config = envoy.outbound(self._identity(CLIENT, SERVER), to, self._log, place=place)
        await self._start(config, place)
        return place

    async def server(self) -> envoy.Place:
        """One that ends tunnels of our outbound side and dials what their streams name."""
        place = envoy.Place(LOOPBACK, free_port(), mark=None)
        await self._start(envoy.inbound(self._identity(SERVER, CLIENT), self._log, place), place)
        return place

    @property
    def _log(self) -> str:
        return str(self._folder / "access.log")

    def _identity(self, own: Identity, other: Identity) -> envoy.Identity:
        identity = envoy.Identity.under(self._folder / own.service_account, str(other))
        identity.write(self._net.certify(own))
        return identity

    async def _start(self, config: envoy.Json, place: envoy.Place) -> None:
        path = self._folder / "envoy.json"
        path.write_text(json.dumps(config))
        await self._programs.serve(envoy.command(path), place.port, self._folder / "envoy.log")


@pytest.fixture
def foreign(programs: Programs, net: Net, tmp_path: Path) -> Envoy:
    """Envoys of this test."""
    return Envoy(programs, net, tmp_path)


@pytest.fixture
async def app(net: Net) -> App:
    """The application; the test moves its connections."""
    return await net.app()


@pytest.fixture(params=["our inbound side", "our outbound side"])
async def connect(
    request: pytest.FixtureRequest,
    foreign: Envoy,
    client: Plane,
    server: Plane,
    net: Net,
    app: App,
) -> Connect:
    """Opens a connection through Envoy and one of our sides: the user's and the app's end."""
    if request.param == "our inbound side":
        place = await foreign.client(server)
        server.decide = lambda _: forward(app.address, reporter="destination")
        to = address(place.port)
    else:
        place = await foreign.server()
        client.decide = lambda _: through(address(place.port), str(app.address))
        to = client.port(Role.OUTBOUND)

    async def connect() -> tuple[Tcp, Tcp]:
        user = await net.dial(to)
        user.send(b"hello")
        arrived = await app.accept()
        assert await arrived.read(5) == b"hello"
        return user, arrived

    return connect


async def test_bodies_arrive_whole_in_both_directions(connect: Connect) -> None:
    user, app = await connect()

    user.send(BODY)
    app.send(BODY[::-1])
    at_app, at_user = await asyncio.gather(app.read(len(BODY)), user.read(len(BODY)))

    assert at_app == BODY
    assert at_user == BODY[::-1]


async def test_end_of_the_user_passes_and_the_answer_goes_on(connect: Connect) -> None:
    user, app = await connect()

    user.send(b"question")
    user.end()
    assert await app.read_all() == b"question"
    app.send(BODY)
    app.end()

    assert await user.read_all() == BODY


async def test_all_that_the_application_sent_before_its_end_arrives(connect: Connect) -> None:
    answer = BODY[: 1 << 20]  # Envoy drops what exceeds the window at the application's end
    user, app = await connect()

    app.send(answer)
    app.end()

    assert await user.read_all() == answer


async def test_end_of_the_application_passes_and_the_user_goes_on(
    foreign: Envoy, server: Plane, net: Net, app: App
) -> None:
    # with the roles swapped, Envoy drops what comes after the application's end
    place = await foreign.client(server)
    server.decide = lambda _: forward(app.address)
    user = await net.dial(address(place.port))
    user.send(b"hello")
    arrived = await app.accept()

    arrived.end()
    assert await user.read_all() == b""
    user.send(BODY)
    user.end()

    assert await arrived.read_all() == b"hello" + BODY


async def test_crowd_is_served_through_shared_tunnels(
    connect: Connect, client: Plane, server: Plane
) -> None:
    crowd = [await connect() for _ in range(CROWD)]

    for number, (user, _) in enumerate(crowd):
        user.send(b"%05d" % number)
    heard = [await app.read(5) for _, app in crowd]

    assert heard == [b"%05d" % number for number in range(CROWD)]
    assert 2 <= len([*client.engine.tunnels(), *server.engine.tunnels()]) <= 4


async def test_envoy_is_known_by_its_certificate(
    foreign: Envoy, server: Plane, net: Net, app: App
) -> None:
    place = await foreign.client(server)
    server.decide = lambda _: forward(app.address)

    (await net.dial(address(place.port))).send(b"x")
    await app.accept()

    key = inbound_key(await server.asked())
    assert key.identity == CLIENT
    assert key.authority == str(address(place.port))


async def test_refusal_ends_the_connection_and_not_the_tunnel(
    foreign: Envoy, server: Plane, net: Net, app: App
) -> None:
    place = await foreign.client(server)
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)
    refused = await net.dial(address(place.port))
    refused.send(b"x")
    assert await refused.read_some_or_reset() == b""

    server.decide = lambda _: forward(app.address)
    taken = await net.dial(address(place.port))
    taken.send(b"x")

    assert await (await app.accept()).read(1) == b"x"
    assert len(server.engine.tunnels()) == 1


async def test_application_that_refuses_ends_the_connection(
    foreign: Envoy, client: Plane, net: Net
) -> None:
    place = await foreign.server()
    nobody = address(free_port())
    client.decide = lambda _: through(address(place.port), str(nobody))

    user = await net.user(client)

    assert await user.read_some_or_reset() == b""
    await client.closed()


async def test_stranger_is_not_let_in(foreign: Envoy, client: Plane, net: Net, app: App) -> None:
    place = await foreign.server()
    stranger = Identity("cluster.local", "ns", "stranger")
    client.decide = lambda _: through(address(place.port), str(app.address), sans=(stranger,))

    user = await net.user(client)

    assert await user.read_some_or_reset() == b""
    assert (await client.closed()).reason is not Reason.OK
    assert not app.accepted
