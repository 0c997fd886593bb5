# SPDX-License-Identifier: Apache-2.0
"""Pods are enrolled in order, remembered, and never cut off silently; with real proxies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.inpod.test_agent_connection import Proxies
from tests.support.clock import FakeClock
from tests.support.wait import settle, until
from ztunnel_py.agent.agent import RETRY_S, Agent, EnrolmentError
from ztunnel_py.agent.control import LONGEST, AbsentError, Control, RefusedError, command
from ztunnel_py.agent.enrolled import StateFile
from ztunnel_py.agent.server import Server
from ztunnel_py.errors import StartError
from ztunnel_py.inpod.client import Client
from ztunnel_py.inpod.manager import Manager
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from ztunnel_py.netns import Netns

CART = WorkloadInfo("cart", "shop", "cart")
OURS = "/proc/self/ns/net"
RULES = "rules {'dns': True}"


class Rules:
    """Notes what is done, and when: before or after the proxy heard."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.problem: str | None = None

    def apply(self, netns: Netns, options: Mapping[str, Any]) -> None:
        """As `Redirection`."""
        if self.problem is not None:
            raise RuntimeError(self.problem)
        self._events.append(f"rules {dict(options)}")

    def remove(self, netns: Netns) -> None:
        """As `Redirection`."""
        if self.problem is not None:
            raise RuntimeError(self.problem)
        self._events.append("no rules")


class Checks:
    """Notes for which pods health checks pass."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.problem: str | None = None

    def open(self, pods: Mapping[str, Netns]) -> None:
        """As `Probes`."""
        self._events.append(f"checks of {sorted(pods)}")

    def add(self, uid: str, netns: Netns) -> None:
        """As `Probes`."""
        if self.problem is not None:
            raise RuntimeError(self.problem)
        self._events.append(f"checks of {uid}")

    def remove(self, uid: str) -> None:
        """As `Probes`."""
        self._events.append(f"no checks of {uid}")

    def close(self) -> None:
        """As `Probes`."""
        self._events.append("no checks")


class NotingProxies(Proxies):
    """Says when a pod starts and stops."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def start(self, uid: str, info: WorkloadInfo, netns: Netns) -> None:
        """As `Pods`."""
        super().start(uid, info, netns)
        self._events.append(f"start {uid}")

    def stop(self, uid: str) -> None:
        """As `Pods`."""
        super().stop(uid)
        self._events.append(f"stop {uid}")


class Machine:
    """An agent, and proxies that connect to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[str] = []
        self.rules = Rules(self.events)
        self.checks: Checks | None = None
        self.clock, self.tasks = FakeClock(), Tasks()
        self.clients: list[Client] = []
        self.is_settled = False

    async def start(self) -> None:
        """The agent begins, with what it remembers."""
        state = StateFile(self.folder / "enrolled.json")
        self.agent = Agent(self.rules, self.checks, state, self.clock)
        await self.agent.restore()
        self.server = Server(self.folder / "zds", self.agent.pods, self.agent.refused)
        self.server.open()

    async def proxy(self) -> NotingProxies:
        """A proxy that has heard of everybody."""
        proxies = NotingProxies(self.events)
        client_clock = FakeClock()
        manager = Manager(proxies, client_clock, self._settled)
        self.clients.append(Client(self.folder / "zds", manager, client_clock))
        self.is_settled = False
        self.tasks.spawn(self.clients[-1].run(lambda why: pytest.fail(why)))
        await until(lambda: self.is_settled, "the snapshot")
        return proxies

    async def enroll(self, info: WorkloadInfo = CART, path: str = OURS) -> str:
        """Enrols; what is wrong."""
        return (await self.agent.enroll(self.server, info, path, {"dns": True})).problem

    def _settled(self, is_settled: bool) -> None:
        self.is_settled = self.is_settled or is_settled


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path)
    await machine.start()
    yield machine
    for client in machine.clients:
        client.stop()
    await machine.tasks.stop()
    await machine.server.close()


@pytest.fixture
async def checked(machine: Machine) -> Machine:
    """A machine whose own health checks pass."""
    await machine.server.close()
    machine.checks = Checks(machine.events)
    await machine.start()
    assert machine.events == ["checks of []"]
    del machine.events[:]
    return machine


@pytest.mark.spec("redir-51")
async def test_rules_then_the_proxy_then_health_checks(checked: Machine) -> None:
    await checked.proxy()
    assert await checked.enroll() == ""
    assert checked.events == [RULES, "start shop/cart", "checks of shop/cart"]


@pytest.mark.spec("redir-53")
async def test_health_checks_end_then_rules_then_all_proxies_hear(checked: Machine) -> None:
    proxies = [await checked.proxy(), await checked.proxy()]
    await checked.enroll()
    del checked.events[:]

    await checked.agent.unenroll(checked.server, "shop/cart")

    assert checked.events == ["no checks of shop/cart", "no rules", "stop shop/cart"]
    assert not any(one.running for one in proxies)
    assert checked.agent.enrolled() == []


async def test_pod_whose_health_checks_do_not_pass_is_tried_again(checked: Machine) -> None:
    assert checked.checks is not None
    await checked.proxy()
    checked.checks.problem = "No space left"
    checked.tasks.spawn(checked.agent.keep_trying(checked.server))

    assert await checked.enroll() == "health checks do not pass: No space left"
    checked.checks.problem = None
    await settle()
    checked.clock.advance(RETRY_S)

    await until(lambda: checked.agent.enrolled()[0].problem == "", "another try")


async def test_health_checks_of_enrolled_pods_outlive_the_agent(checked: Machine) -> None:
    await checked.proxy()
    await checked.enroll()
    await checked.agent.close()
    await checked.server.close()
    del checked.events[:]

    await checked.start()
    assert checked.events == [RULES, "checks of ['shop/cart']"]

    await checked.agent.unenroll(checked.server, "shop/cart")
    await checked.agent.close()
    assert checked.events[-1] == "no checks"


async def test_rules_come_before_the_proxy_hears(machine: Machine) -> None:
    proxies = await machine.proxy()

    assert await machine.enroll() == ""

    assert machine.events == [RULES, "start shop/cart"]
    info, inode = proxies.running["shop/cart"]
    assert info == CART
    assert inode == os.stat(OURS).st_ino


@pytest.mark.spec("redir-52")
async def test_pod_whose_rules_fail_is_not_enrolled_and_nobody_hears(machine: Machine) -> None:
    proxies = await machine.proxy()
    machine.rules.problem = "iptables-restore: no such table"

    with pytest.raises(EnrolmentError, match="cannot be redirected: iptables-restore: no such"):
        await machine.enroll()

    assert not proxies.running
    assert machine.agent.enrolled() == []


@pytest.mark.spec("redir-52")
async def test_pod_that_the_proxy_cannot_serve_is_pending_and_tried_again(
    machine: Machine,
) -> None:
    proxies = await machine.proxy()
    proxies.problem = "Address already in use"
    machine.tasks.spawn(machine.agent.keep_trying(machine.server))

    assert "Address already in use" in await machine.enroll()
    proxies.problem = None
    await settle()
    machine.clock.advance(RETRY_S)

    await until(lambda: "shop/cart" in proxies.running, "another try")
    await until(lambda: machine.agent.enrolled()[0].problem == "", "the good news")


async def test_without_a_proxy_a_pod_is_enrolled_and_served_when_one_comes(
    machine: Machine,
) -> None:
    assert await machine.enroll() == "no proxy is connected"

    proxies = await machine.proxy()

    assert list(proxies.running) == ["shop/cart"]
    assert machine.agent.enrolled()[0].problem == ""


@pytest.mark.spec("redir-54")
async def test_every_proxy_hears_of_all_pods_first(machine: Machine) -> None:
    await machine.enroll()
    first, second = await machine.proxy(), await machine.proxy()
    assert list(first.running) == list(second.running) == ["shop/cart"]


async def test_what_is_enrolled_outlives_the_agent(machine: Machine) -> None:
    await machine.enroll()
    await machine.server.close()

    await machine.start()

    proxies = await machine.proxy()
    assert list(proxies.running) == ["shop/cart"]


@pytest.mark.spec("redir-57")
async def test_agent_that_ends_leaves_pods_as_they_are(machine: Machine) -> None:
    proxies = await machine.proxy()
    await machine.enroll()
    await machine.server.close()
    await settle()

    assert list(proxies.running) == ["shop/cart"]
    assert machine.events == [RULES, "start shop/cart"]


async def test_enrolling_again_repairs_the_rules_and_is_one_pod(machine: Machine) -> None:
    proxies = await machine.proxy()
    await machine.enroll()
    await machine.enroll()
    assert machine.events == [RULES, "start shop/cart", RULES]
    assert list(proxies.running) == ["shop/cart"]


async def test_one_namespace_is_one_pod_and_one_name_one_namespace(machine: Machine) -> None:
    await machine.enroll()
    with pytest.raises(EnrolmentError, match="is enrolled as shop/cart"):
        await machine.enroll(WorkloadInfo("other", "shop", "other"))


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/nowhere", "No such file"), ("/proc/self/ns/uts", "is not a network namespace")],
)
async def test_path_that_is_no_network_namespace_is_refused(
    machine: Machine, path: str, problem: str
) -> None:
    with pytest.raises(EnrolmentError, match=problem):
        await machine.enroll(path=path)
    assert machine.events == []


async def test_namespace_that_is_another_one_now_is_not_served_in_its_place(
    machine: Machine,
) -> None:
    await machine.enroll()
    await machine.server.close()
    file = machine.folder / "enrolled.json"
    tree = json.loads(file.read_text())
    tree["pods"][0]["place"]["inode"] += 1
    file.write_text(json.dumps(tree))

    await machine.start()

    assert not (await machine.proxy()).running
    (one,) = machine.agent.enrolled()
    assert "gone: " in one.problem
    await machine.agent.unenroll(machine.server, one.uid)
    assert machine.events == [RULES], "rules of another pod are not touched"


@pytest.mark.parametrize("text", ["", "{", '{"version": 9, "pods": []}', '{"version": 1}', "[]"])
def test_state_that_cannot_be_read_ends_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "enrolled.json").write_text(text)
    with pytest.raises(StartError, match=r"enrolled\.json"):
        StateFile(tmp_path / "enrolled.json").read()


async def test_pod_whose_rules_stay_stays_enrolled(machine: Machine) -> None:
    await machine.enroll()
    machine.rules.problem = "busy"
    with pytest.raises(EnrolmentError, match="cannot be removed: busy"):
        await machine.agent.unenroll(machine.server, "shop/cart")
    assert [one.uid for one in machine.agent.enrolled()] == ["shop/cart"]


# --- commands


@pytest.mark.spec("redir-58")
async def test_commands_reach_the_agent_and_errors_come_back(machine: Machine) -> None:
    path = machine.folder / "control"
    with pytest.raises(AbsentError, match="no agent at"):
        command(path, "enrolled")
    control = Control(path, machine.agent, machine.server)
    await control.open()

    async def ask(what: str, order: Any = None) -> dict[str, Any]:
        return await asyncio.to_thread(command, path, what, order)

    pod = {"PodName": "a", "PodNamespace": "b", "Netns": OURS, "ServiceAccount": "c"}
    found = await ask("cmdadd", pod)
    assert (found["uid"], found["problem"]) == ("b/a", "no proxy is connected")
    assert [one["uid"] for one in (await ask("enrolled"))["pods"]] == ["b/a"]
    assert (await ask("unenroll", {"uid": "b/a"}))["uid"] == "b/a"
    with pytest.raises(RefusedError, match="b/a is not enrolled"):
        await ask("unenroll", {"uid": "b/a"})
    with pytest.raises(RefusedError, match="Not Found"):
        await ask("dance", {})
    assert (path.stat().st_mode & 0o777) == 0o600
    await control.close()


@pytest.mark.spec("redir-58")
@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("{", 400, "malformed request"),
        ("", 400, "malformed request"),
        ("[]", 400, "malformed request"),
        ('{"PodName": "a", "PodNamespace": "b"}', 400, "Netns"),
        ('{"PodName": 1, "PodNamespace": "b", "Netns": "/n"}', 400, "expected text, got 1"),
        ('{"PodName": "a", "PodNamespace": "b", "Netns": "/n"}', 500, "/n"),
        ("{" + " " * LONGEST + "}", 413, ""),
    ],
)
async def test_pod_that_a_plugin_announces_wrongly_is_refused(
    machine: Machine, body: str, status: int, text: str
) -> None:
    control = Control(machine.folder / "control", machine.agent, machine.server)
    await control.open()

    connector = aiohttp.UnixConnector(str(machine.folder / "control"))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.post("http://agent/cmdadd", data=body) as answer:
            assert answer.status == status
            assert text in await answer.text()
        told = {"PodName": "a", "PodNamespace": "b", "Netns": OURS, "IPs": None}
        async with session.post("http://agent/cmdadd", json=told) as answer:
            assert answer.status == 200
            assert (await answer.json())["serviceAccount"] == "default"
    await control.close()


# --- proxies that misbehave


def connected(machine: Machine) -> socket.socket:
    """A socket to the agent, without a proxy behind it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    sock.connect(str(machine.folder / "zds"))
    return sock


async def received(sock: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1024), 10)


async def test_proxy_that_speaks_unasked_is_hung_up(machine: Machine) -> None:
    with connected(machine) as sock:
        sock.send(bytes.fromhex("0801"))
        assert await received(sock) == bytes.fromhex("1a00")
        sock.send(bytes.fromhex("0a00"))
        await settle()
        sock.send(b"anything")
        assert await received(sock) == b""


async def test_garbage_costs_a_proxy_its_connection_only(machine: Machine) -> None:
    proxies = await machine.proxy()
    with connected(machine) as sock:
        sock.send(b"\xff\xff\xff")
        assert await received(sock) == b""
    assert await machine.enroll() == ""
    assert list(proxies.running) == ["shop/cart"]


async def test_proxy_that_goes_while_it_is_asked_is_no_answer(machine: Machine) -> None:
    with connected(machine) as sock:
        sock.send(bytes.fromhex("0801"))
        await received(sock)
        sock.send(bytes.fromhex("0a00"))
        await settle()
        enrolling = asyncio.ensure_future(machine.enroll())
        await until(lambda: bool(machine.events), "the rules")
        await settle()
    assert "does not answer" in await enrolling or "hung up" in await enrolling
