# SPDX-License-Identifier: Apache-2.0
"""One proxy takes over from another while clients go on connecting: nobody is refused."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.netns import surge
from tests.netns.mesh_state import APP_PORT, PodMesh, awaited, wait, workload
from tests.netns.node import Node
from ztunnel_py.cli.demo_mesh import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

PODS = {
    "client": "node-a",
    "bare": "node-a",
    "server": "node-b",
    **{name: "node-b" for name in ("old", "new")},
    **{name: "node-a" for name in ("old-a", "new-a")},
}
RATE, SECONDS = 500, 4
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
        journal = surging(mesh, source)

        after.serve(pod, ZTUNNEL_DATAPLANE=engine)
        old.program.send_signal(signal.SIGTERM)

        assert old.program.wait(DEADLINE_S) == 0
        wait(lambda: any(e["event"] == "done" for e in journal.events()), "the end", DEADLINE_S)
        (done,) = (e for e in journal.events() if e["event"] == "done")
        assert done["outcomes"] == {"ok": RATE * SECONDS + 1}


def surging(mesh: PodMesh, source: str) -> Journal:
    """Connections from a pod to the server, that have begun."""
    path = mesh.folder / f"surge-{source}"
    argv = [sys.executable, str(Path(surge.__file__)), mesh.ip("server"), str(APP_PORT)]
    with path.open("w") as out:
        program = mesh.pod(source).popen([*argv, str(RATE), str(SECONDS)], stdout=out, stderr=out)
    journal = Journal(path)
    awaited(journal, program, "event", "going")
    return journal
