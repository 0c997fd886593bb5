# SPDX-License-Identifier: Apache-2.0
"""The example as a running mesh whose proxies know nothing but what a control plane tells them."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.process.conftest import APPS, DEADLINE_S, PROXY, ROOT, Program, environment
from tests.support.example import mesh as example_state
from ztunnel_py.cli.demo_mesh import Journal
from ztunnel_py.cli.topology import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ztunnel_py.cli.demo_mesh import Event
    from ztunnel_py.cli.topology import Pod

VIP = "10.96.0.50"
PODS = {"cart-0": "node-a", "prices-0": "node-b"}
DENIAL = """\
  - {name: nobody, namespace: shop, scope: Namespace, action: Deny, dryRun: false, rules: [[]]}
"""


class Heard(NamedTuple):
    """The running mesh."""

    mesh: Mesh
    journals: dict[str, Journal]
    istiods: dict[str, Program]
    path: Path

    def say(self, state: str) -> None:
        """Changes the mesh."""
        self.path.write_text(state)
        for istiod in self.istiods.values():
            istiod.tell("changed")

    def logged(self, pod: str, text: str) -> Event:
        """The line of a pod's proxy that has `text` as its error, waited for."""
        found = self.journals[pod].wait(lambda event: text in str(event.get("error", "")))
        assert found is not None, f"{pod} logged: {self.journals[pod].events()[-10:]}"
        return found


@pytest.fixture
def heard(namespaces: None, tmp_path: Path) -> Iterator[Heard]:
    """A client and a server, each with a proxy and a control plane in its pod."""
    (tmp_path / "run").mkdir(mode=0o700)
    path = tmp_path / "mesh.yaml"
    with Mesh(PODS) as mesh, contextlib.ExitStack() as stack:
        path.write_text(example_state(*(pod.ipv4 for pod in mesh.pods.values())))
        istiods, journals = {}, {}
        for name, pod in mesh.pods.items():
            folder = tmp_path / name
            folder.mkdir()
            istiods[name] = Program(pod, "-m", "tests.support.istiod", str(path), str(folder))
            stack.callback(istiods[name].kill)
            journals[name] = _start(pod, folder, istiods[name].line())
        echo = Program(mesh.pod("prices-0"), str(APPS), "echo", "8080")
        stack.callback(echo.kill)
        assert echo.line() == "ready"
        yield Heard(mesh, journals, istiods, path)


def _start(pod: Pod, folder: Path, istiod: str) -> Journal:
    """Enrols a pod and starts its proxy."""
    path = folder / "proxy.log"
    account = pod.name.partition("-")[0]
    env = environment(
        PROXY_WORKLOAD_INFO=f"shop/{pod.name}/{account}",
        NODE_NAME=pod.node,
        XDS_ADDRESS=istiod,
        XDS_ROOT_CA=str(folder / "root-cert.pem"),
        XDG_RUNTIME_DIR=str(folder.parent / "run"),
        LOG_FORMAT="json",
    )
    with path.open("w") as out:
        pod.popen(PROXY, stdout=out, stderr=out, env=env, cwd=ROOT)
    pod.enrol()
    journal = Journal(path)
    assert journal.wait(lambda e: "marking server ready" in e.get("message", "")), path.read_text()
    return journal


def test_a_denial_that_is_pushed_ends_what_is_open_and_its_removal_lets_in_again(
    heard: Heard,
) -> None:
    client = heard.mesh.pod("cart-0")
    state = heard.path.read_text()
    with contextlib.closing(_Talk(client)) as talk:
        assert talk.hears("hello") == "hello"

        heard.say(state + DENIAL)
        heard.logged("prices-0", "connection closed due to policy change")
        assert talk.hears("still there?") == "closed"
    with contextlib.closing(_Talk(client)) as talk:
        assert talk.hears("hello") == "closed"
    line = heard.logged("cart-0", "http status: 401 Unauthorized")
    assert line["dst.service"] == "prices.shop.svc.cluster.local"

    heard.say(state)
    deadline = time.monotonic() + DEADLINE_S
    while _answer(client) != "hello":
        assert time.monotonic() < deadline


def _answer(client: Pod) -> str:
    with contextlib.closing(_Talk(client)) as talk:
        return talk.hears("hello")


class _Talk:
    """A connection of the client to the service."""

    def __init__(self, client: Pod) -> None:
        self._program = Program(client, str(APPS), "talk", VIP, "80")
        assert self._program.line() == "connected"

    def hears(self, word: str) -> str:
        """What comes back for a word."""
        self._program.tell(word)
        return self._program.line()

    def close(self) -> None:
        """Hangs up."""
        self._program.kill()
