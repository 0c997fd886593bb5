# SPDX-License-Identifier: Apache-2.0
"""What a CNI agent says over a real socket, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.clock import FakeClock
from tests.support.cni import Cni
from tests.support.wait import settle, until
from ztunnel_py.inpod import zds
from ztunnel_py.inpod.client import Client
from ztunnel_py.inpod.manager import RETRY_S, Manager, PodState
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.cni import Conversation
    from ztunnel_py.netns import Netns

INFO = ("cart-0", "shop", "cart")
SNAPSHOT = bytes.fromhex("1a00")


class Proxies:
    """Starts and stops nothing but a note of it."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[WorkloadInfo, int]] = {}
        self.problem: str | None = None

    def start(self, uid: str, info: WorkloadInfo, netns: Netns) -> None:
        """As `Pods`."""
        if self.problem is not None:
            raise OSError(98, self.problem)
        assert uid not in self.running
        self.running[uid] = info, os.fstat(netns.fileno()).st_ino

    def stop(self, uid: str) -> None:
        """As `Pods`."""
        del self.running[uid]


class Node:
    """A proxy of a node, without its data plane, and its agent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock, self.tasks, self.proxies = FakeClock(), Tasks(), Proxies()
        self.is_settled = False
        self.given_up = ""
        self.manager = Manager(self.proxies, self.clock, self._settled)
        self.client = Client(path, self.manager, self.clock)
        self.cni: Cni | None = None

    def start(self) -> None:
        """Connects from now on."""
        self.tasks.spawn(self.client.run(self._give_up))

    async def meet(self, *, snapshot: bool = False) -> Conversation:
        """The connection, at its beginning or after an empty snapshot."""
        if self.cni is None:
            self.cni = Cni(self.path)
            self.start()
        proxy = await self.cni.accept()
        if snapshot:
            proxy.snapshot()
            assert await proxy.ack() == ""
        return proxy

    def states(self) -> dict[str, PodState]:
        """How pods stand."""
        return {pod.uid: pod.state for pod in self.manager.statuses()}

    def _settled(self, is_settled: bool) -> None:
        self.is_settled = is_settled

    def _give_up(self, why: str) -> None:
        self.given_up = why


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path / "zds.sock")
    yield node
    node.client.stop()
    await node.tasks.stop()
    if node.cni is not None:
        node.cni.close()


@pytest.fixture
def netns() -> Iterator[int]:
    """A descriptor of a network namespace: ours."""
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def other() -> Iterator[int]:
    """Something with another inode."""
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def descriptors() -> int:
    """How many are open here."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.spec("ops-58")
async def test_proxy_says_hello_first_over_a_socket_of_datagrams(node: Node) -> None:
    proxy = await node.meet()
    assert proxy.hello == bytes.fromhex("0801")


async def test_pod_is_started_and_the_answer_is_the_reference_one(node: Node, netns: int) -> None:
    proxy = await node.meet()
    proxy.add("1", netns, INFO)
    assert await proxy.answer() == bytes.fromhex("0a00")
    proxy.send(SNAPSHOT)
    assert await proxy.answer() == bytes.fromhex("0a00")

    info, _ = node.proxies.running["1"]
    assert info == WorkloadInfo("cart-0", "shop", "cart")
    assert node.is_settled
    assert node.states() == {"1": PodState.UP}


@pytest.mark.spec("ops-62", "redir-56")
async def test_message_that_is_none_ends_the_connection_and_leaks_nothing(
    node: Node, netns: int
) -> None:
    add_without_pod = bytes.fromhex("0a030a0131")
    malformed: list[tuple[bytes, list[int], str]] = [
        (add_without_pod, [], "add with 0 descriptors"),
        (add_without_pod, [netns, netns], "add with 2 descriptors"),
        (SNAPSHOT, [netns], "snapshot_sent with 1 descriptors"),
        (bytes.fromhex("0a051201"), [netns], "cannot be decoded"),
        (bytes.fromhex("7a00"), [], "no payload"),
        (bytes.fromhex("7a00"), [netns], "no payload"),
        (SNAPSHOT, [netns] * 20, "cut off"),
    ]
    proxy = await node.meet()
    before = descriptors()
    for data, fds, error in malformed:
        proxy.send(data, *fds)
        answer = await proxy.ack()
        assert answer.startswith("failure to read message : ")
        assert error in answer
        assert await proxy.answer() == b""
        proxy.hang_up()
        proxy = await node.meet()

    assert descriptors() == before
    assert not node.proxies.running


@pytest.mark.spec("ops-72")
async def test_datagram_that_is_too_long_ends_the_connection(node: Node) -> None:
    proxy = await node.meet()
    proxy.send(SNAPSHOT + bytes(1023))
    assert await proxy.ack() == "failure to read message : the message was cut off"
    await node.meet()


async def test_longest_datagram_is_taken(node: Node, netns: int) -> None:
    proxy = await node.meet()
    name = "n" * 1000
    proxy.add("1", netns, (name, "", ""))
    assert await proxy.ack() == ""
    assert node.proxies.running["1"][0].name == name


@pytest.mark.parametrize("case", ["no info", "keep", "snapshot"])
@pytest.mark.spec("ops-63", "ops-64")
async def test_agent_that_breaks_the_protocol_is_told_and_given_up(
    node: Node, netns: int, case: str
) -> None:
    proxy = await node.meet(snapshot=case != "no info")
    match case:
        case "no info":
            proxy.add("1", netns, None)
        case "keep":
            proxy.keep("1")
        case "snapshot":
            proxy.snapshot()

    assert (await proxy.ack()).startswith("protocol error: ")
    assert await proxy.answer() == b""
    await until(lambda: bool(node.given_up), "the end")
    assert "broke the protocol" in node.given_up


@pytest.mark.spec("ops-65", "redir-55")
async def test_same_pod_twice_is_one_proxy(node: Node, netns: int) -> None:
    proxy = await node.meet(snapshot=True)
    for _ in range(2):
        proxy.add("1", netns, INFO)
        assert await proxy.ack() == ""
    assert (node.manager.started, node.manager.stopped) == (1, 0)


@pytest.mark.spec("ops-66", "redir-55")
async def test_newest_namespace_of_a_pod_is_served(node: Node, netns: int, other: int) -> None:
    proxy = await node.meet(snapshot=True)
    for descriptor in (netns, other):
        proxy.add("1", descriptor, INFO)
        assert await proxy.ack() == ""
    assert node.proxies.running["1"][1] == os.fstat(other).st_ino
    assert (node.manager.started, node.manager.stopped) == (2, 1)


@pytest.mark.spec("redir-60")
async def test_namespace_of_a_pod_is_not_inherited_and_let_go_with_it(
    node: Node, netns: int
) -> None:
    proxy = await node.meet(snapshot=True)
    inode = os.fstat(netns).st_ino
    before = descriptors_of(inode)
    proxy.add("1", netns, INFO)
    assert await proxy.ack() == ""

    (ours,) = descriptors_of(inode) - before
    assert not os.get_inheritable(ours)
    proxy.delete("1")
    assert await proxy.ack() == ""
    assert ours not in descriptors_of(inode)


def descriptors_of(inode: int) -> set[int]:
    """Those that are open here and stand for it; tests before may have left some."""
    found = set()
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == inode:
                found.add(descriptor)
    return found


@pytest.mark.spec("ops-67", "ops-73")
async def test_pod_that_goes_is_stopped_and_one_that_never_was_is_fine(
    node: Node, netns: int
) -> None:
    proxy = await node.meet(snapshot=True)
    proxy.add("1", netns, INFO)
    assert await proxy.ack() == ""
    for uid in ("1", "nobody"):
        proxy.delete(uid)
        assert await proxy.ack() == ""
    assert not node.proxies.running


@pytest.mark.spec("ops-68")
async def test_before_the_snapshot_is_complete_nobody_is_stopped(node: Node, netns: int) -> None:
    proxy = await node.meet(snapshot=True)
    proxy.add("1", netns, INFO)
    assert await proxy.ack() == ""
    proxy.hang_up()
    proxy = await node.meet()
    proxy.add("1", netns, INFO)
    proxy.delete("1")
    assert [await proxy.ack(), await proxy.ack()] == ["", ""]
    assert list(node.proxies.running) == ["1"]

    proxy.snapshot()
    assert await proxy.ack() == ""
    assert not node.proxies.running


@pytest.mark.spec("ops-69", "redir-54")
async def test_who_is_not_in_a_new_snapshot_is_stopped_and_others_go_on(
    node: Node, netns: int
) -> None:
    proxy = await node.meet(snapshot=True)
    for uid in ("kept", "added", "gone"):
        proxy.add(uid, netns, INFO)
        assert await proxy.ack() == ""
    proxy.hang_up()

    proxy = await node.meet()
    proxy.keep("kept")
    proxy.keep("never seen")
    proxy.add("added", netns, INFO)
    proxy.snapshot()
    assert [await proxy.ack() for _ in range(4)] == [""] * 4

    assert sorted(node.proxies.running) == ["added", "kept"]
    assert (node.manager.started, node.manager.stopped) == (3, 1)


@pytest.mark.spec("ops-61")
async def test_pod_that_cannot_be_started_is_tried_again_every_five_seconds(
    node: Node, netns: int
) -> None:
    proxy = await node.meet(snapshot=True)
    node.proxies.problem = "Address already in use"
    proxy.add("1", netns, INFO)
    assert await proxy.ack() == "failed to start proxy : [Errno 98] Address already in use"
    assert not node.is_settled
    assert node.states() == {"1": PodState.PENDING}

    node.clock.advance(RETRY_S)
    await settle()
    assert node.states() == {"1": PodState.PENDING}
    node.proxies.problem = None
    node.clock.advance(RETRY_S)
    await settle()

    assert node.states() == {"1": PodState.UP}
    assert node.is_settled
    assert node.clock.pending == 0
    proxy.delete("1")
    assert await proxy.ack() == ""


@pytest.mark.spec("ops-79")
async def test_pending_pod_that_goes_is_not_tried_again(node: Node, netns: int) -> None:
    proxy = await node.meet(snapshot=True)
    node.proxies.problem = "Address already in use"
    proxy.add("1", netns, INFO)
    assert await proxy.ack() != ""
    proxy.delete("1")
    assert await proxy.ack() == ""
    assert node.is_settled

    node.proxies.problem = None
    node.clock.advance(2 * RETRY_S)
    await settle()
    assert node.states() == {}


async def test_pending_pods_are_forgotten_with_the_connection(node: Node, netns: int) -> None:
    proxy = await node.meet(snapshot=True)
    node.proxies.problem = "Address already in use"
    proxy.add("1", netns, INFO)
    assert await proxy.ack() != ""
    node.proxies.problem = None
    proxy.hang_up()
    await node.meet(snapshot=True)

    node.clock.advance(2 * RETRY_S)
    await settle()
    assert node.states() == {}
    assert node.is_settled


async def test_agent_that_goes_is_missed_and_met_again(node: Node, netns: int) -> None:
    proxy = await node.meet(snapshot=True)
    proxy.add("1", netns, INFO)
    assert await proxy.ack() == ""
    proxy.hang_up()
    await until(lambda: not node.is_settled, "the loss to be noticed")
    assert list(node.proxies.running) == ["1"]

    proxy = await node.meet()
    proxy.keep("1")
    proxy.snapshot()
    assert [await proxy.ack(), await proxy.ack()] == ["", ""]
    assert node.is_settled


@pytest.mark.spec("ops-71")
async def test_absent_agent_is_looked_for_ever_less_often(
    node: Node, capfd: pytest.CaptureFixture[str]
) -> None:
    node.start()
    expected = [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 15, 15]
    tries = 1
    for wait_s in expected:
        await until(lambda: node.clock.pending == 1, "a pause")
        node.clock.advance(wait_s * 0.99)
        await settle()
        assert node.clock.pending == 1
        node.clock.advance(wait_s * 0.011)
        await settle()
        tries += 1
    said = capfd.readouterr().err
    assert said.count("cannot connect to the node agent") == tries


async def test_agent_that_only_hangs_up_is_not_called_in_a_tight_loop(node: Node) -> None:
    for _ in range(3):
        proxy = await node.meet()
        proxy.hang_up()
        await until(lambda: node.clock.pending == 1, "a pause")
        node.clock.advance(1)


async def test_answer_that_is_too_long_is_cut(node: Node, netns: int) -> None:
    proxy = await node.meet(snapshot=True)
    node.proxies.problem = "é" * 2000
    proxy.add("1", netns, INFO)
    answer = await proxy.answer()
    assert len(answer) <= zds.LONGEST


async def test_many_messages_are_answered_in_their_order(node: Node, netns: int) -> None:
    proxy = await node.meet()
    for number in range(50):
        proxy.add(str(number), netns, INFO)
    proxy.snapshot()
    assert [await proxy.ack() for _ in range(51)] == [""] * 51
    assert len(node.proxies.running) == 50
    await asyncio.sleep(0)
    assert node.is_settled
