# SPDX-License-Identifier: Apache-2.0
"""Every test here runs on every engine; what it sees is the contract and the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.clock import FakeClock
from tests.support.plane import CLIENT, SERVER, Plane
from ztunnel_py.dataplane.abc import EngineSettings
from ztunnel_py.reference.engine import ReferenceEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity

ENGINES = {"reference": ReferenceEngine}


@pytest.fixture(params=list(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    """The engine under test."""
    return str(request.param)


@pytest.fixture
async def planes(
    engine_name: str, certify: Callable[[Identity], WorkloadCertificate]
) -> AsyncIterator[Callable[..., Awaitable[Plane]]]:
    """Makes started planes; each is stopped and must have left nothing behind."""
    made: list[Plane] = []

    async def make(
        identity: Identity | None = CLIENT,
        settings: EngineSettings | None = None,
        *,
        serve: bool = True,
        host: str = "127.0.0.1",
    ) -> Plane:
        clock = FakeClock()
        certificate = None if identity is None else certify(identity)
        plane = Plane(ENGINES[engine_name](clock), clock, settings or EngineSettings(), certificate)
        await plane.start(host, serve=serve)
        made.append(plane)
        return plane

    yield make
    for plane in made:
        await plane.stop()


@pytest.fixture
async def client(planes: Callable[..., Awaitable[Plane]]) -> Plane:
    """The engine on the client's side."""
    return await planes(CLIENT)


@pytest.fixture
async def server(planes: Callable[..., Awaitable[Plane]]) -> Plane:
    """The engine on the server's side."""
    return await planes(SERVER)
