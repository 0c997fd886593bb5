# SPDX-License-Identifier: Apache-2.0
"""Pods in real network namespaces; where the kernel forbids them, all tests here are skipped."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.cli.demo_mesh import Journal
from ztunnel_py.cli.topology import Mesh, NamespacesForbiddenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ztunnel_py.cli.demo_mesh import Event
    from ztunnel_py.cli.topology import Namespace, Pod

SOCKETS = Path(__file__).with_name("sockets.py")
PODS = {"client": "node-a", "server": "node-b", "bare": "node-a"}
PROXY_TCP = (15001, 15006, 15008, 15053)
PROXY_UDP = (15053,)
APP_PORT = 8080
RESOLVER_PORT = 53
OURS = {"PYTHONPATH": os.pathsep.join(sys.path)}
"""What a program of ours needs to be found in any folder."""
IPTABLES = ("iptables-nft", "iptables-legacy")
BACKENDS = (*IPTABLES, "nft")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that build namespaces; those of a file that share a mesh stay together."""
    here = Path(__file__).parent
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.path.parent == here and "namespaces" in fixtures:
            item.add_marker(pytest.mark.netns)
        if item.path.parent == here and fixtures & {"mesh", "demo"}:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips the test, with the kernel's words, where no namespaces can be built."""
    try:
        with Mesh({}):
            pass
    except NamespacesForbiddenError as exc:
        pytest.skip(f"NAMESPACE TESTS DO NOT RUN HERE: {exc}")


@pytest.fixture(scope="module")
def mesh(namespaces: None) -> Iterator[Mesh]:
    """Two nodes; a client and a bare pod on one, a server on the other. No rules yet."""
    with Mesh(PODS) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def journals(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Journal]:
    """Listeners in place of a proxy and an application in client and server, an app in bare.

    Returns what each pod's listeners report.
    """
    folder = tmp_path_factory.mktemp("sockets")
    found = {}
    for name, pod in mesh.pods.items():
        tcp = [APP_PORT] if name == "bare" else [APP_PORT, *PROXY_TCP]
        udp = [RESOLVER_PORT] if name == "bare" else list(PROXY_UDP)
        path = folder / name
        argv = [sys.executable, str(SOCKETS), "serve", "--tcp", *map(str, tcp)]
        with path.open("w") as out:
            pod.popen([*argv, "--udp", *map(str, udp)], stdout=out, stderr=out)
        found[name] = Journal(path)
        assert found[name].wait(lambda event: event["event"] == "ready"), path.read_text()
    return found


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each kind of programs that make rules."""
    return str(request.param)


def dial(space: Namespace, host: str, port: int, *options: str) -> Event:
    """Connects from a namespace and returns what came of it; see `sockets.py`."""
    argv = [sys.executable, str(SOCKETS), "dial", host, str(port), *options]
    event: Event = json.loads(space.run(argv).stdout)
    return event


def seen(journal: Journal, event: Event) -> Event:
    """What the listener reported about a connection that `dial` made."""
    port = event["local"][1]
    found = journal.wait(lambda report: report.get("source", [None, None])[1] == port)
    assert found is not None, f"no listener saw {event}"
    return found


def before(folder: Path) -> dict[str, str]:
    """The environment in which the programs of a folder are found before others."""
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def clean(mesh: Mesh) -> Iterator[Callable[[str], Pod]]:
    """Gives pods whose rules the test installs; they are clean before and after."""
    used = []

    def give(name: str) -> Pod:
        pod = mesh.pod(name)
        used.append(pod)
        return pod

    yield give
    for pod in used:
        pod.unenrol()
