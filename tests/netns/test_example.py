# SPDX-License-Identifier: Apache-2.0
"""The example of the local file format as a running mesh: two proxies on one file.

cart-0 on node-a calls the service of prices-0 on node-b; a pod without a proxy tries plaintext.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import APPS, PROXY, ROOT, environment
from tests.support.example import mesh as example_state
from ztunnel_py.cli.demo_mesh import Journal
from ztunnel_py.cli.topology import Mesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ztunnel_py.cli.demo_mesh import Event
    from ztunnel_py.cli.topology import Pod

VIP = "10.96.0.50"
PODS = {"cart-0": "node-a", "prices-0": "node-b", "till-0": "node-b", "outside": "node-a"}
ACCOUNTS = {"cart-0": "cart", "prices-0": "prices", "till-0": "till"}
TILL = """\
  - uid: demo//Pod/shop/till-0
    name: till-0
    namespace: shop
    serviceAccount: till
    trustDomain: cluster.local
    workloadIps: ["{address}"]
    node: node-b
    protocol: HBONE
    services: {{}}
"""


@dataclass
class Example:
    """The running mesh."""

    mesh: Mesh
    journals: dict[str, Journal]

    def talk(self, pod: str, host: str, port: int) -> str:
        """One word from a pod to an address, and what came back."""
        argv = [sys.executable, str(APPS), "talk", host, str(port)]
        return self.mesh.pod(pod).run(argv, text_in="hello\n", check=False).stdout

    def ended(self, pod: str, matches: Callable[[Event], bool]) -> Event:
        """The access line of a pod's proxy that matches, waited for."""
        found = self.journals[pod].wait(
            lambda e: (
                e.get("scope") == "access" and e["message"] != "connection opened" and matches(e)
            )
        )
        assert found is not None, f"{pod} logged: {self.journals[pod].events()[-10:]}"
        return found

    def metrics(self, pod: str) -> list[str]:
        """Traffic samples of a pod's proxy."""
        url = "http://127.0.0.1:15020/metrics"
        text = self.mesh.pod(pod).run(["curl", "--silent", "--max-time", "5", url]).stdout
        return [line for line in text.splitlines() if line.startswith("istio_tcp_")]


@pytest.fixture(scope="module")
def example(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """Three proxies and their applications; `outside` has neither proxy nor rules."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "run").mkdir(mode=0o700)
    with Mesh(PODS) as mesh, contextlib.ExitStack() as stack:
        ips = {name: pod.ipv4 for name, pod in mesh.pods.items()}
        till = TILL.format(address=ips["till-0"])
        state = example_state(ips["cart-0"], ips["prices-0"], till)
        (folder / "mesh.yaml").write_text(state)
        narrow = "echo 40000 40499 > /proc/sys/net/ipv4/ip_local_port_range"
        mesh.pod("till-0").run(["sh", "-c", narrow])
        journals = {name: _start(mesh.pod(name), folder) for name in ACCOUNTS}
        for name in ("prices-0", "till-0"):
            argv = [sys.executable, str(APPS), "echo", "8080"]
            app = mesh.pod(name).popen(argv, stdout=subprocess.PIPE, cwd=ROOT)
            assert app.stdout is not None
            stack.callback(app.stdout.close)
            assert app.stdout.readline() == "ready\n"
        yield Example(mesh, journals)


def _start(pod: Pod, folder: Path) -> Journal:
    """Enrols a pod and starts its proxy; all share the development root of one directory."""
    path = folder / f"{pod.name}.log"
    env = environment(
        PROXY_WORKLOAD_INFO=f"shop/{pod.name}/{ACCOUNTS[pod.name]}",
        NODE_NAME=pod.node,
        LOCAL_XDS_PATH=str(folder / "mesh.yaml"),
        XDG_RUNTIME_DIR=str(folder / "run"),
        LOG_FORMAT="json",
    )
    with path.open("w") as out:
        pod.popen(PROXY, stdout=out, stderr=out, env=env, cwd=ROOT)
    pod.enrol()
    journal = Journal(path)
    assert journal.wait(lambda e: "marking server ready" in e.get("message", "")), path.read_text()
    return journal


@pytest.mark.spec("state-114")
def test_the_example_behaves_as_it_says(example: Example) -> None:
    prices = example.mesh.pod("prices-0").ipv4

    answer = example.talk("cart-0", VIP, 80)
    plaintext = example.talk("outside", prices, 8080)
    other = example.talk("till-0", VIP, 80)

    assert answer == "connected\nhello\nclosed\n"
    line = example.ended("cart-0", lambda e: e.get("dst.addr") == f"{prices}:15008")
    assert line["dst.hbone_addr"] == f"{prices}:8080"
    assert line["dst.service"] == "prices.shop.svc.cluster.local"
    assert plaintext == "connected\nclosed\n"
    assert other == "connected\nclosed\n"


@pytest.mark.spec("dataplane-89", "state-100")
def test_plaintext_is_closed_where_a_policy_wants_an_identity(example: Example) -> None:
    prices = example.mesh.pod("prices-0").ipv4

    answer = example.talk("outside", prices, 8080)

    assert answer == "connected\nclosed\n"
    line = example.ended("prices-0", lambda e: e.get("dst.addr") == f"{prices}:8080")
    assert line["error"].startswith("connection closed due to policy rejection")
    closed = [m for m in example.metrics("prices-0") if "connections_closed" in m]
    assert any('response_flags="DENY"' in m and 'policy="unknown"' in m for m in closed)


@pytest.mark.spec("dataplane-88", "dataplane-91")
def test_plaintext_passes_with_the_clients_address_and_no_identity(example: Example) -> None:
    till, outside = example.mesh.pod("till-0").ipv4, example.mesh.pod("outside").ipv4

    answer = example.talk("outside", till, 8080)

    assert answer == "connected\nhello\nclosed\n"
    line = example.ended("till-0", lambda e: e.get("dst.addr") == f"{till}:8080")
    assert line["src.addr"].startswith(f"{outside}:")
    assert "src.identity" not in line
    assert "dst.identity" not in line
    opened = [m for m in example.metrics("till-0") if "connections_opened" in m]
    principal = 'destination_principal="spiffe://cluster.local/ns/shop/sa/till"'
    assert any(principal in m for m in opened)


@pytest.mark.spec("dataplane-90")
@pytest.mark.parametrize("port", [15001, 15006])
def test_plaintext_to_the_proxys_own_ports_is_refused(example: Example, port: int) -> None:
    till = example.mesh.pod("till-0").ipv4

    answer = example.talk("outside", till, port)

    assert answer == "connected\nclosed\n"
    line = example.ended("till-0", lambda e: e.get("dst.addr") == f"{till}:{port}")
    assert line["message"] == "connection failed"
    assert line["error"] == "attempted recursive call to ourselves"


@pytest.mark.parametrize(("way", "collisions"), [("hbone", 0), ("plaintext", 3)])
def test_many_short_connections_from_one_client_outlive_the_port_range(
    example: Example, way: str, collisions: int
) -> None:
    # A plaintext client and the proxy's leg to the application draw from the same 500 ports, and a
    # SYN can meet a leg that is just closing. A range that runs out fails a thousand times.
    client = example.mesh.pod("cart-0" if way == "hbone" else "outside")
    till = example.mesh.pod("till-0").ipv4

    argv = [sys.executable, str(APPS), "churn", till, "8080", "1500"]
    report = json.loads(client.run(argv, timeout_s=40).stdout)

    assert report["answered"] >= 1500 - collisions


def test_a_refusing_application_is_reported_at_once(example: Example) -> None:
    till = example.mesh.pod("till-0").ipv4

    started = time.monotonic()
    answer = example.talk("cart-0", till, 8099)
    elapsed = time.monotonic() - started

    assert answer == "connected\nclosed\n"
    line = example.ended("till-0", lambda e: e.get("dst.hbone_addr") == f"{till}:8099")
    assert line["error"] == "connection failed: Connection refused (os error 111)"
    assert elapsed < 1
