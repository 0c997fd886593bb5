# SPDX-License-Identifier: Apache-2.0
"""One proxy takes over from another while clients go on connecting: nobody is refused."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.netns.mesh_state import APP_PORT, PodMesh, workload
from tests.netns.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

PODS = {
    "client": "node-a",
    "bare": "node-a",
    "server": "node-b",
    **{name: "node-b" for name in ("old", "new")},
    **{name: "node-a" for name in ("old-a", "new-a")},
}
RATES = {"native": 500, "reference": 100}
"""Connections a second. The engine in Python has no time to spare at 500 on a busy machine."""
SECONDS = 4
DEADLINE_S = 40.0


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """A client and a server in the mesh, one client outside of it, and places for proxies."""
    with PodMesh(PODS, tmp_path_factory.mktemp("upgrade")) as mesh:
        mesh.know([workload(mesh.pod("client")), workload(mesh.pod("server"))])
        mesh.run_app("server", "--echo", str(APP_PORT))
        yield mesh


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(
    ("source", "replaced"),
    [("client", "node-a"), ("client", "node-b"), ("bare", "node-b")],
    ids=["the client's proxy", "the server's proxy", "the server's proxy, in plaintext"],
)
def test_nobody_is_refused_while_a_proxy_is_replaced(
    mesh: PodMesh, source: str, replaced: str, engine: str
) -> None:
    suffix = "-a" if replaced == "node-a" else ""
    pod = mesh.pod("client" if replaced == "node-a" else "server")
    other = "node-b" if replaced == "node-a" else "node-a"
    with (
        Node(mesh, other) as elsewhere,
        Node(mesh, replaced, mesh.pod(f"old{suffix}")) as before,
        Node(mesh, replaced, mesh.pod(f"new{suffix}")) as after,
    ):
        elsewhere.serve(mesh.pod("server" if other == "node-b" else "client"))
        old = before.serve(pod, ZTUNNEL_DATAPLANE=engine)
        surge = mesh.surge(source, "server", RATES[engine], SECONDS)

        after.serve(pod, ZTUNNEL_DATAPLANE=engine)
        old.program.send_signal(signal.SIGTERM)

        assert old.program.wait(DEADLINE_S) == 0
        assert surge.outcomes(DEADLINE_S) == {"ok": RATES[engine] * SECONDS + 1}
