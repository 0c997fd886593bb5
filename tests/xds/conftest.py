# SPDX-License-Identifier: Apache-2.0
"""Discovery clients, each with settings, a store and a server of its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.istiod.server import Istiod
from tests.support.wait import DEADLINE_S, until
from ztunnel_py import config
from ztunnel_py.clock import LoopClock
from ztunnel_py.rpc.server import Server
from ztunnel_py.state.store import Store
from ztunnel_py.tasks import Tasks
from ztunnel_py.xds.client import Client
from ztunnel_py.xds.counts import Counts
from ztunnel_py.xds.ingest import Ingest
from ztunnel_py.xds.node import node
from ztunnel_py.xds.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from ztunnel_py.clock import Clock, Timer


class HastyClock:
    """A clock on which no time passes while somebody waits; it remembers how long that was."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def now(self) -> float:
        """Always the same."""
        return 0.0

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        """Runs `call` soon, whatever the delay."""
        self.pauses.append(delay_s)
        return asyncio.get_running_loop().call_later(0.001, call)


class Discovery:
    """What a proxy has of a control plane."""

    def __init__(self, settings: config.Config, clock: Clock, tasks: Tasks) -> None:
        self.store = Store()
        self.counts = Counts()
        session = Session(node(settings), on_demand=settings.xds_on_demand)
        ingest = Ingest(self.store, self.counts)
        channel = Server.discovery(settings).channel
        self.client = Client(channel, session, ingest, self.counts, clock, tasks)

    def uids(self) -> set[str]:
        """Workloads that are known."""
        return {workload.uid for workload in self.store.workloads()}

    async def ended(self, reason: str, times: int = 1) -> None:
        """Returns when so many streams have ended like that."""
        await until(
            lambda: self.counts.terminations.get(reason, 0) >= times,
            f"{times} times {reason}, not {self.counts.terminations}",
        )

    async def synced(self) -> None:
        """Returns when it is ready."""
        async with asyncio.timeout(DEADLINE_S):
            await self.client.synced.wait()


class Plane:
    """A control plane and its clients."""

    def __init__(self, istiod: Istiod, directory: Path, tasks: Tasks) -> None:
        self.istiod = istiod
        self.roots = directory / "root-cert.pem"
        self.roots.write_bytes(istiod.authority.roots_pem)
        self._directory = directory
        self._tasks = tasks

    def discover(self, clock: Clock | None = None, **environ: str) -> Discovery:
        """A client that runs, with these variables; time passes as it does."""
        own = {"XDS_ADDRESS": self.istiod.address, "XDS_ROOT_CA": str(self.roots)}
        own |= {"POD_NAME": "p", "POD_NAMESPACE": "n", "PROXY_MODE": "shared"}
        settings = config.load({**own, **environ}, self._directory)
        found = Discovery(settings, clock or LoopClock(), self._tasks)
        self._tasks.spawn(found.client.run())
        return found


@asynccontextmanager
async def _running(directory: Path, istiod: Istiod) -> AsyncIterator[Plane]:
    tasks = Tasks()
    async with istiod:
        yield Plane(istiod, directory, tasks)
        await tasks.stop()


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    """A control plane whose streams tests take one by one."""
    async with _running(tmp_path, Istiod()) as plane:
        yield plane
