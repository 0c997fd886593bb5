# SPDX-License-Identifier: Apache-2.0
"""What becomes of connections that are open when a pod is enrolled, and when it ceases to be.

Measured on the real kernel: mid-stream packets that nobody tracked look new to the rules, and are
led to the proxy, which knows nothing of them. Source: spec redirection, section 7.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.netns.mesh_state import APP_PORT, PodMesh, workload
from tests.netns.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.mesh_state import Call

PODS = {"client": "node-a", "tracked": "node-a", "server": "node-b"}
TRACKING = (
    "table ip other { chain c { type filter hook output priority 0; ct state new accept; }; }"
)
BACKENDS = ("iptables-nft", "iptables-legacy", "nft")


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """A server that is not enrolled, and clients that may be."""
    with PodMesh(PODS, tmp_path_factory.mktemp("running")) as mesh:
        mesh.know([workload(mesh.pod("client")), workload(mesh.pod("tracked"))])
        mesh.run_app("server", "--echo", str(APP_PORT))
        yield mesh


@pytest.fixture
def node(mesh: PodMesh) -> Iterator[Node]:
    """The clients' node, with its agent."""
    with Node(mesh, "node-a") as node:
        yield node


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Programs that make the rules."""
    return str(request.param)


@pytest.fixture
def client(mesh: PodMesh, node: Node, backend: str) -> Iterator[str]:
    """A pod that its proxy serves and that has no rules."""
    node.serve(mesh.pod("client"))
    mesh.pod("client").unenrol()
    yield "client"
    mesh.pod("client").unenrol()


def is_working(call: Call) -> bool:
    """The server has greeted, and sends back what it gets."""
    return call.greeting() == f"server:{APP_PORT}" and call.echoed()


def test_open_connection_breaks_when_its_pod_is_enrolled(
    mesh: PodMesh, client: str, backend: str
) -> None:
    with mesh.caller(client).call(mesh.ip("server")) as call:
        assert is_working(call)

        mesh.pod(client).enrol(backend=backend)

        call.send(b"more")
        assert call.read().ended == "reset"
    with mesh.caller(client).call(mesh.ip("server")) as call:
        assert is_working(call), "a new one passes the proxy"


def test_open_connection_goes_on_uncaptured_where_connections_were_tracked(
    mesh: PodMesh, node: Node, backend: str
) -> None:
    tracked = mesh.pod("tracked")
    proxy = node.serve(tracked)
    tracked.unenrol()
    tracked.run(["nft", "-f", "-"], text_in=TRACKING)
    try:
        with mesh.caller("tracked").call(mesh.ip("server")) as call:
            assert is_working(call)

            tracked.enrol(backend=backend)

            assert call.echoed()
            assert proxy.admin("/connections") == []
    finally:
        tracked.unenrol()
        tracked.run(["nft", "delete", "table", "ip", "other"])


def test_captured_connection_breaks_when_its_pod_leaves(
    mesh: PodMesh, client: str, backend: str
) -> None:
    mesh.pod(client).enrol(backend=backend)
    with mesh.caller(client).call(mesh.ip("server")) as call:
        assert is_working(call)

        mesh.pod(client).unenrol()

        call.send(b"more")
        found = call.read(wait_s=1)
        assert not found.data
        assert found.ended in ("reset", "silence")
    with mesh.caller(client).call(mesh.ip("server")) as call:
        assert is_working(call), "a new one has the plain network"
