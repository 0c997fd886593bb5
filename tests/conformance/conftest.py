# SPDX-License-Identifier: Apache-2.0
"""Every test here runs on every engine; what it sees is the contract and the wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.clock import FakeClock
from tests.support.engines import (
    ENGINES,
    MANY_WORKERS,
    forbid_reference,
    kind,
    make_engine,
    workers,
)
from tests.support.net import Mesh, Net
from tests.support.plane import CLIENT, LOOPBACK, SERVER, Plane
from ztunnel_py.dataplane.abc import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from tests.support.plane import Planes
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity


WITH_MANY_WORKERS = {
    "test_abuse",
    "test_drain",
    "test_endings",
    "test_flow_control",
    "test_half_close",
    "test_path",
    "test_pool",
    "test_records",
}
"""Modules whose claims hold whichever worker serves, so that they also look for races."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test on every engine, those of some modules also on several workers."""
    if "engine_name" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        more = [MANY_WORKERS] if module in WITH_MANY_WORKERS else []
        metafunc.parametrize("engine_name", [*ENGINES, *more], indirect=True)


@pytest.fixture
def engine_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine under test; the native one gets no help from the reference."""
    if kind(request.param) == "native":
        forbid_reference(monkeypatch)
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
        settings.setdefault("workers", workers(engine_name))
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
