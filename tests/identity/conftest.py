# SPDX-License-Identifier: Apache-2.0
"""A node with its authority, and engines that serve with what it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.engines import ENGINES
from tests.support.net import Net
from tests.support.node import Node, Served
from ztunnel_py.telemetry import log as logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose authority is there."""
    node = Node(tmp_path)
    await node.start()
    yield node
    await node.stop()


@pytest.fixture(params=ENGINES)
async def served(
    request: pytest.FixtureRequest, node: Node, certify: Callable[[Identity], WorkloadCertificate]
) -> AsyncIterator[Served]:
    """Each engine, serving."""
    net = Net(certify)
    served = Served(request.param, node, net)
    yield served
    net.close()
    await served.stop()


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """What was logged so far."""
    path = tmp_path / "log"
    with path.open("ab") as file:

        def logged() -> str:
            logs.configure("info", fd=file.fileno())  # writes what is queued
            return path.read_text()

        logged()
        yield logged
        logs.close()
