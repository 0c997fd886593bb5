# SPDX-License-Identifier: Apache-2.0
"""Certificates follow a node's workloads: there before they are needed, gone when nobody is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.state.build import pod
from tests.support.clock import FakeClock
from tests.support.wait import settle, until
from ztunnel_py.dataplane.prefetch import Prefetch
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.manager import SecretManager
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.store import Store, WorkloadRemoval, WorkloadUpdate
from ztunnel_py.state.workload import Protocol
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.state.workload import Workload

HERE, ELSEWHERE = "node-a", "node-b"


def workload(uid: str, account: str, **changes: Any) -> Workload:
    """A pod of this node that does HBONE, with changes."""
    fields = {"uid": uid, "namespace": "shop", "service_account": account, "node": HERE} | changes
    return pod(uid, **fields).workload


def of(account: str) -> Identity:
    return Identity("cluster.local", "shop", account)


class Node:
    """The store of a node, and an authority that notes who is asked for, and in what company."""

    def __init__(
        self, certify: Callable[[Identity], WorkloadCertificate], name: str | None = HERE
    ) -> None:
        self.certify = certify
        self.asked: list[Identity] = []
        self.in_flight = self.most_in_flight = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_down = False
        self.store, self.tasks = Store(name or ""), Tasks()
        self.manager = SecretManager(self, FakeClock(), self.tasks)
        self.prefetch = Prefetch(self.store, self.manager, name)

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """As `CertificateAuthority`."""
        self.asked.append(identity)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self.gate.wait()
        self.in_flight -= 1
        if self.is_down:
            raise IdentityError("the authority is down")
        return self.certify(identity)

    def push(self, *workloads: Workload) -> None:
        self.store.apply([WorkloadUpdate(one, {}) for one in workloads])

    def remove(self, *uids: str) -> None:
        self.store.apply([WorkloadRemoval(uid) for uid in uids])

    def kept(self) -> list[str]:
        """Accounts of the identities that are kept."""
        return sorted(one.service_account for one in self.manager.identities())


@pytest.fixture
async def node(certify: Callable[[Identity], WorkloadCertificate]) -> AsyncIterator[Node]:
    node = Node(certify)
    node.tasks.spawn(node.prefetch.run())
    await settle(1)
    yield node
    node.manager.stop()
    await node.tasks.stop()


@pytest.mark.spec("ops-28")
async def test_who_will_be_connected_to_on_this_node_is_fetched(node: Node) -> None:
    node.push(
        workload("1", "hbone"),
        workload("2", "native", protocol=Protocol.TCP, native_tunnel=True),
        workload("3", "plain", protocol=Protocol.TCP),
        workload("4", "elsewhere", node=ELSEWHERE),
    )

    await until(lambda: len(node.asked) == 2, "two certificates")
    await settle(3)

    assert sorted(node.asked) == [of("hbone"), of("native")]


async def test_workload_that_joins_the_mesh_later_is_fetched_then(node: Node) -> None:
    node.push(workload("1", "cart", protocol=Protocol.TCP))
    await settle(2)
    assert not node.asked

    node.push(workload("1", "cart"))

    await until(lambda: node.asked == [of("cart")], "its certificate")


async def test_what_is_known_at_the_start_is_fetched(
    certify: Callable[[Identity], WorkloadCertificate],
) -> None:
    node = Node(certify)
    node.push(workload("1", "cart"))

    node.tasks.spawn(node.prefetch.run())

    await until(lambda: node.asked == [of("cart")], "its certificate")
    node.manager.stop()
    await node.tasks.stop()


async def test_without_a_node_name_nothing_is_fetched(
    certify: Callable[[Identity], WorkloadCertificate],
) -> None:
    node = Node(certify, name=None)
    node.tasks.spawn(node.prefetch.run())
    await settle(1)

    node.push(workload("1", "cart"))
    await settle(3)
    assert not node.asked
    await node.manager.get(of("cart"))
    node.remove("1")

    assert node.kept() == []
    await node.tasks.stop()


@pytest.mark.spec("ops-29")
async def test_account_that_nobody_has_any_more_is_dropped(node: Node) -> None:
    node.push(workload("1", "cart"), workload("2", "cart"), workload("3", "prices"))
    await until(lambda: node.kept() == ["cart", "prices"], "both")

    node.remove("1")
    assert node.kept() == ["cart", "prices"]
    node.remove("2")

    assert node.kept() == ["prices"]


async def test_workload_of_another_node_does_not_keep_an_account(node: Node) -> None:
    node.push(workload("1", "cart"), workload("2", "cart", node=ELSEWHERE))
    await until(lambda: node.kept() == ["cart"], "the certificate")

    node.remove("1")

    assert node.kept() == []


@pytest.mark.spec("ops-30")
async def test_workload_that_is_sent_again_keeps_its_certificate(node: Node) -> None:
    node.push(workload("1", "cart"))
    await until(lambda: node.asked == [of("cart")], "its certificate")
    kept = await node.manager.get(of("cart"))

    node.push(workload("1", "cart", workload_name="renamed"))
    await settle(2)

    assert await node.manager.get(of("cart")) is kept
    assert node.asked == [of("cart")]


@pytest.mark.spec("ops-31")
async def test_one_is_fetched_after_the_other_and_connections_do_not_wait(node: Node) -> None:
    node.gate.clear()
    node.push(*(workload(str(number), f"{number:02}") for number in range(20)))
    await until(lambda: node.in_flight == 1, "the first")
    await settle(3)
    assert node.in_flight == 1

    urgent = asyncio.ensure_future(node.manager.get(of("17")))
    await until(lambda: node.in_flight == 2, "the one that a connection waits for")
    node.gate.set()
    await urgent

    await until(lambda: len(node.asked) == 20, "all")
    assert node.asked[1] == of("17")
    assert node.most_in_flight == 2


async def test_what_a_connection_waits_for_comes_first(node: Node) -> None:
    node.gate.clear()
    names = [f"{number}" for number in range(8)]
    node.push(*(workload(name, name, protocol=Protocol.TCP) for name in [*names, "urgent"]))
    asking = [asyncio.ensure_future(node.manager.get(of(name))) for name in names]
    await until(lambda: node.in_flight == 8, "all slots taken")
    node.push(workload("cart", "cart"))
    await settle(2)

    asking.append(asyncio.ensure_future(node.manager.get(of("urgent"))))
    await settle(2)
    node.gate.set()
    await asyncio.gather(*asking)

    await until(lambda: len(node.asked) == 10, "all")
    assert node.asked[8:] == [of("urgent"), of("cart")]


async def test_workloads_that_are_sent_again_take_no_place_in_the_queue(node: Node) -> None:
    node.gate.clear()
    node.push(workload("1", "a"), workload("2", "b"))
    await until(lambda: node.in_flight == 1, "the first")
    for number in range(300):
        node.push(workload("2", "b", workload_name=f"{number}"))

    node.push(workload("3", "c"))
    node.gate.set()

    await until(lambda: node.asked == [of("a"), of("b"), of("c")], "all")


async def test_failure_does_not_stop_the_others(node: Node) -> None:
    node.is_down = True
    node.push(workload("1", "cart"), workload("2", "prices"))

    await until(lambda: len(node.asked) == 2, "both tries")

    assert node.kept() == ["cart", "prices"]


async def test_workload_that_went_while_it_waited_is_not_fetched(node: Node) -> None:
    node.gate.clear()
    node.push(workload("1", "a"), workload("2", "b"))
    await until(lambda: node.in_flight == 1, "the first")

    node.remove("2")
    node.gate.set()
    await settle(3)

    assert node.asked == [of("a")]


async def test_more_than_can_wait_are_fetched_on_demand(node: Node) -> None:
    node.gate.clear()
    node.push(*(workload(str(number), f"{number:03}") for number in range(300)))
    await until(lambda: node.in_flight == 1, "the first")
    node.gate.set()
    await until(lambda: len(node.asked) == 256, "those that could wait")
    await settle(3)
    assert len(node.asked) == 256

    assert (await node.manager.get(of("299"))).identity == of("299")
