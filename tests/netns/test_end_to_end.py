# SPDX-License-Identifier: Apache-2.0
"""Real proxies, real rules: what an application sees of connections that crossed them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.netns.conftest import SOCKETS, dial
from ztunnel_py.cli.demo_mesh import VIP, DemoMesh, Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ztunnel_py.cli.demo_mesh import Event

PORT = 9090
FOREIGN = {"ipv4": "203.0.113.9", "ipv6": "2001:db8::9"}


@pytest.fixture(scope="module")
def demo(namespaces: None) -> Iterator[DemoMesh]:
    """The demo's mesh without a policy, and a pod outside of it that also has foreign addresses."""
    with DemoMesh("policy", outsiders={"outsider": "node-a"}) as demo:
        outsider = demo.mesh.pod("outsider")
        outsider.run(["ip", "address", "add", FOREIGN["ipv4"], "dev", "lo"])
        outsider.run(["ip", "address", "add", FOREIGN["ipv6"], "dev", "lo"])
        for node, vias in (("node-a", outsider), ("node-b", None)):
            via4, via6 = (vias.ipv4, vias.ipv6) if vias else ("10.77.0.1", "fd77::1")
            demo.mesh.node(node).run(["ip", "route", "add", FOREIGN["ipv4"], "via", via4])
            demo.mesh.node(node).run(["ip", "route", "add", FOREIGN["ipv6"], "via", via6])
        yield demo


@pytest.fixture(scope="module")
def app(demo: DemoMesh, tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """An application in the server's pod that reports who connects."""
    path: Path = tmp_path_factory.mktemp("app") / "report"
    with path.open("w") as out:
        argv = [sys.executable, str(SOCKETS), "serve", "--tcp", str(PORT)]
        demo.mesh.pod("server").popen(argv, stdout=out, stderr=out)
    journal = Journal(path)
    assert journal.wait(lambda event: event["event"] == "ready")
    return journal


@pytest.fixture(params=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> str:
    """Each family, by the name of the pod's address."""
    return str(request.param)


@pytest.mark.spec("redir-33")
@pytest.mark.parametrize("way", ["hbone", "plaintext", "plaintext from a foreign address"])
def test_application_sees_the_clients_address(
    demo: DemoMesh, app: Journal, family: str, way: str
) -> None:
    source = demo.mesh.pod("client" if way == "hbone" else "outsider")
    server = getattr(demo.mesh.pod("server"), family)
    host = FOREIGN[family] if "foreign" in way else getattr(source, family)

    event = dial(source, server, PORT, "--source", host)

    assert event["answered"] == PORT
    reports = [report for report in app.events() if report.get("source", [""])[0] == host]
    assert reports[-1]["wanted"][0] == server
    is_tunnelled = demo.journals["server"].wait(
        lambda line: (
            line.get("scope") == "access"
            and line.get("src.workload") == "client"
            and line.get("dst.hbone_addr", "").startswith(("10.77.2", "[fd77:2"))
        )
    )
    assert (is_tunnelled is not None) or way != "hbone"


@pytest.mark.spec("redir-36")
def test_source_port_is_the_kernels_choice(demo: DemoMesh, app: Journal, family: str) -> None:
    outsider, server = demo.mesh.pod("outsider"), getattr(demo.mesh.pod("server"), family)

    event = dial(outsider, server, PORT)

    host, port = event["local"]
    reports = [report for report in app.events() if report.get("source", [""])[0] == host]
    assert event["answered"] == PORT
    assert reports
    assert reports[-1]["source"][1] != port


@pytest.mark.spec("redir-39")
@pytest.mark.parametrize(("host", "port"), [("ipv4", 15001), ("ipv6", 15006), ("127.0.0.1", 15001)])
def test_connection_to_a_proxy_port_is_refused_once(demo: DemoMesh, host: str, port: int) -> None:
    client, journal = demo.mesh.pod("client"), demo.journals["client"]
    before = len(self_calls(journal))

    event = dial(client, getattr(client, host, host), port)

    assert event.get("answered", 0) == 0
    assert journal.wait(lambda _: len(self_calls(journal)) > before)
    assert len(self_calls(journal)) == before + 1


def self_calls(journal: Journal) -> list[Event]:
    """The refusals of connections to the proxy itself."""
    return [line for line in journal.events() if "recursive call" in line.get("error", "")]


def test_pod_reaches_itself_by_its_service(demo: DemoMesh) -> None:
    reply = demo.curl("server", "/hello")

    assert reply.status == 200
    assert demo.secret in reply.body
    assert VIP not in demo.mesh.pod("server").run(["ip", "address"]).stdout
