# SPDX-License-Identifier: Apache-2.0
"""Pods that come and go under load leave nothing behind, and disturb nobody who stays."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.netns.mesh_state import APP_PORT, PodMesh, wait, workload
from tests.netns.node import Node
from ztunnel_py.cli.topology import NETNS_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.mesh_state import Proxy

PODS = {"comes": "node-a", "stays": "node-a", "server": "node-b"}
WARM_UP, ROUNDS = 15, 20
RATE, SECONDS = 100, 8
PATIENCE_S = 30.0
POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads that Python keeps for what would block; they come one by one, when they are needed."""


class Held(NamedTuple):
    """What a proxy holds."""

    descriptors: int
    threads: int
    namespaces: int
    """Of these."""
    tunnels: int
    series: int
    """Lines of metrics."""


def held(proxy: Proxy) -> Held:
    """What a proxy holds now."""
    process = Path("/proc", str(proxy.program.pid))
    links = [link.readlink() for link in (process / "fd").iterdir() if link.is_symlink()]
    return Held(
        len(links),
        len(list((process / "task").iterdir())),
        len([link for link in links if str(link).startswith(("net:", NETNS_DIR))]),
        len(proxy.admin("/tunnels")),
        len(proxy.scrape().splitlines()),
    )


@pytest.fixture
def mesh(namespaces: None, tmp_path: Path) -> Iterator[PodMesh]:
    """A pod that comes and goes, one that stays, and a server for both."""
    with PodMesh(PODS, tmp_path) as mesh:
        mesh.know([workload(mesh.pod(name)) for name in PODS])
        mesh.run_app("server", "--echo", str(APP_PORT))
        yield mesh


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_pods_that_come_and_go_under_load_leave_nothing(mesh: PodMesh, engine: str) -> None:
    comes, stays = mesh.pod("comes"), mesh.pod("stays")
    with Node(mesh, "node-a") as here, Node(mesh, "node-b") as there:
        proxy = here.serve(stays, ZTUNNEL_DATAPLANE=engine, LOG_LEVEL="warn")
        other = there.serve(mesh.pod("server"), ZTUNNEL_DATAPLANE=engine, LOG_LEVEL="warn")
        comes.enrol()

        def live(number: int) -> None:
            """One pod's life; it ends with a connection open."""
            assert here.agent.add(comes, f"uid-{number}") == ""
            with mesh.caller("comes").call(mesh.ip("server")) as call:
                assert call.greeting() == f"server:{APP_PORT}"
                assert here.agent.delete(f"uid-{number}") == ""
                assert call.read().ended in ("fin", "reset")

        surge = mesh.surge("stays", "server", RATE, SECONDS)
        for number in range(WARM_UP):
            live(number)

        assert surge.outcomes(PATIENCE_S) == {"ok": RATE * SECONDS + 1}
        before = [at_rest(one) for one in (proxy, other)]
        for number in range(WARM_UP, WARM_UP + ROUNDS):
            live(number)

        for one, then in zip((proxy, other), before, strict=True):
            now = at_rest(one)
            most = then._replace(threads=then.threads + POOL)
            assert all(map(operator.le, now, most)), f"{now}, before: {then}"


def at_rest(proxy: Proxy) -> Held:
    """What a proxy holds when all connections are over."""
    wait(lambda: proxy.admin("/connections") == [], "all connections to end")
    return held(proxy)
