# SPDX-License-Identifier: Apache-2.0
"""Ends of long connections: the application goes, the proxy of one side or the other goes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.netns.app import GREETING_SIZE
from tests.netns.mesh_state import APP_PORT, BODY, PodMesh, wait, workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PODS = {"client": "node-a", "server": "node-b", "outside": "node-a"}
LONG, SHORT = "60s", "400ms"


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """A client and a server; each test starts the proxies that it needs."""
    with PodMesh(PODS, tmp_path_factory.mktemp("shutdown")) as mesh:
        mesh.know([workload(mesh.pod("client")), workload(mesh.pod("server"))])
        mesh.run_app("server", "--echo", str(APP_PORT))
        yield mesh


@pytest.fixture
def start(mesh: PodMesh) -> Iterator[Callable[[str], None]]:
    """Starts both proxies with a time for draining; they end with the test."""

    def start(deadline: str) -> None:
        mesh.serve("client", "server", CONNECTION_TERMINATION_DEADLINE=deadline)

    yield start
    for proxy in mesh.proxies.values():
        proxy.program.kill()
        proxy.program.wait()


@pytest.mark.parametrize("source", ["client", "outside"])
def test_application_that_goes_ends_its_connections_in_order(
    mesh: PodMesh, start: Callable[[str], None], source: str
) -> None:
    start(LONG)
    app = mesh.run_app("server", "--echo", "8085")

    with mesh.caller(source).call(mesh.ip("server"), 8085) as call:
        assert call.greeting() == "server:8085"
        assert call.echoed()
        app.terminate()
        assert call.read() == (b"", "fin")

    lines = mesh.proxies["server"].lines
    wait(lines, "the server's line")
    (ended,) = lines()
    assert (ended["bytes_recv"], ended["bytes_sent"]) == (len(BODY), len(BODY) + GREETING_SIZE)
    assert "error" not in ended
    with mesh.caller(source).call(mesh.ip("server"), 8085) as call:
        assert call.read() == (b"", "fin")
    wait(lambda: len(lines()) == 2, "the refused connection's line")
    assert lines()[-1]["error"] == "connection failed: Connection refused (os error 111)"


@pytest.mark.spec("ops-104")
@pytest.mark.parametrize("side", ["server", "client"])
def test_proxy_that_is_told_to_go_serves_what_runs_and_nothing_new(
    mesh: PodMesh, start: Callable[[str], None], side: str
) -> None:
    start(LONG)
    proxy = mesh.proxies[side]

    with mesh.caller("client").call(mesh.ip("server")) as call:
        assert call.greeting() == f"server:{APP_PORT}"
        proxy.program.send_signal(signal.SIGTERM)
        wait(lambda: refused(mesh, side), "new connections to be refused")
        if side == "server":
            (tunnel,) = mesh.proxies["client"].admin("/tunnels")
            assert tunnel["draining"], "the peer has heard GOAWAY"

        assert call.echoed()
        assert new_connection(mesh) == ""
        assert proxy.program.poll() is None

    assert proxy.program.wait(8) == 0
    (line,) = [one for one in proxy.lines() if one["message"] == "connection complete"]
    assert "error" not in line
    assert sorted((line["bytes_sent"], line["bytes_recv"])) == [
        len(BODY),
        len(BODY) + GREETING_SIZE,
    ]


def refused(mesh: PodMesh, side: str) -> bool:
    """Whether the ports of a proxy are closed."""
    if side == "server":
        return mesh.caller("outside").is_refused(mesh.ip("server"), 15008)
    return mesh.caller("client").is_refused("127.0.0.1", 15001)


def new_connection(mesh: PodMesh) -> str:
    """Who answers a connection of the client now; empty if nobody."""
    call = mesh.caller("client").dial(mesh.ip("server"), APP_PORT)
    if isinstance(call, str):
        return ""
    with call:
        return call.greeting()


@pytest.mark.parametrize("side", ["server", "client"])
def test_connection_that_outlives_the_deadline_is_cut(
    mesh: PodMesh, start: Callable[[str], None], side: str
) -> None:
    start(SHORT)
    proxy, other = mesh.proxies[side], mesh.proxies["client" if side == "server" else "server"]

    with mesh.caller("client").call(mesh.ip("server")) as call:
        assert call.greeting() == f"server:{APP_PORT}"
        assert call.echoed()
        proxy.program.send_signal(signal.SIGTERM)

        assert proxy.program.wait(8) == 0
        assert call.read().ended in ("fin", "reset")

    (line,) = proxy.lines()
    assert line["error"] == "connection closed due to connection drain"
    assert line["level"] == "error"
    wait(other.lines, "the other proxy's line")
    samples = other.samples()
    opened, closed = (
        sum(n for (family, _), n in samples.items() if family == f"connections_{what}")
        for what in ("opened", "closed")
    )
    assert opened == closed == 1


def test_client_finds_the_proxy_that_comes_after(
    mesh: PodMesh, start: Callable[[str], None]
) -> None:
    start(LONG)
    assert new_connection(mesh) == f"server:{APP_PORT}"

    mesh.proxies["server"].program.send_signal(signal.SIGTERM)
    assert mesh.proxies["server"].program.wait(8) == 0
    assert new_connection(mesh) == ""
    mesh.serve("server")

    assert new_connection(mesh) == f"server:{APP_PORT}"
