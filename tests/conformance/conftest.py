# SPDX-License-Identifier: Apache-2.0
"""Every test here runs on every engine; what it sees is the contract and the wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.clock import FakeClock
from tests.support.engines import ENGINES, make_engine
from tests.support.net import Mesh, Net
from tests.support.plane import CLIENT, LOOPBACK, SERVER, Plane
from ztunnel_py.dataplane.abc import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from tests.support.plane import Planes
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity


@pytest.fixture(params=list(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    """The engine under test."""
    return str(request.param)


@pytest.fixture
async def planes(
    engine_name: str, certify: Callable[[Identity], WorkloadCertificate]
) -> AsyncIterator[Planes]:
    """Makes started planes, settings by name; each is stopped and must leave nothing behind."""
    made: list[Plane] = []

    async def make(
        identity: Identity | None = CLIENT,
        *,
        serve: bool = True,
        host: str = LOOPBACK,
        **settings: Any,
    ) -> Plane:
        clock = FakeClock()
        certificate = None if identity is None else certify(identity)
        engine = make_engine(engine_name, clock)
        plane = Plane(engine, clock, EngineSettings(**settings), certificate)
        await plane.start(host, serve=serve)
        made.append(plane)
        return plane

    yield make
    await asyncio.gather(*(plane.stop() for plane in made))


@pytest.fixture
async def client(planes: Planes) -> Plane:
    """The engine on the client's side."""
    return await planes(CLIENT)


@pytest.fixture
async def server(planes: Planes) -> Plane:
    """The engine on the server's side."""
    return await planes(SERVER)


@pytest.fixture
async def net(
    planes: Planes, certify: Callable[[Identity], WorkloadCertificate]
) -> AsyncIterator[Net]:
    """Users, applications and scripted tunnels; gone before the planes stop."""
    net = Net(certify)
    yield net
    net.close()


@pytest.fixture
async def mesh(client: Plane, server: Plane, net: Net) -> Mesh:
    """Two engines with an application behind them."""
    return Mesh(client, server, net, await net.app())
