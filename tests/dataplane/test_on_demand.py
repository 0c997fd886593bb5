# SPDX-License-Identifier: Apache-2.0
"""What a decision lacks is fetched before it is made; what cannot be fetched is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.dataplane.test_upcalls import STATE, TO_B, TO_NOBODY, Mind
from tests.support.wait import settle
from ztunnel_py.dataplane.upcalls import FETCH_ROUNDS
from ztunnel_py.decide.verdict import Action, HopProtocol
from ztunnel_py.errors import Reason
from ztunnel_py.state.store import WorkloadUpdate
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.store import Store

SERVICE = """
services:
  - {name: web, namespace: ns, hostname: web.test, vips: [/10.0.0.2], ports: {80: 80},
     waypoint: {destination: ns/way.test, hboneMtlsPort: 15008}}
"""
WAYPOINT = """
workloads:
  - {uid: w, name: w, namespace: ns, serviceAccount: w, trustDomain: td, protocol: HBONE,
     workloadIps: [10.0.0.9], services: {ns/way.test: {15008: 15008}}}
services:
  - {name: way, namespace: ns, hostname: way.test, vips: [], ports: {15008: 15008}}
"""


class Elsewhere:
    """What the control plane knows, by name; nothing for most."""

    def __init__(self) -> None:
        self.knows: dict[str, str] = {}
        self.asked: list[set[str]] = []
        self.is_silent = False
        self.store: Store | None = None

    async def fetch(self, names: Collection[str]) -> None:
        """As the contract."""
        self.asked.append(set(names))
        await settle(1)
        if self.is_silent:
            raise TimeoutError("5 s: silence")
        assert self.store is not None
        for name in names:
            self.store.apply(local.parse(self.knows.get(name, ""), name).updates)


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
async def mind(
    certify: Callable[[Identity], WorkloadCertificate], elsewhere: Elsewhere
) -> AsyncIterator[Mind]:
    """A mind that knows the local workload only."""
    mind = Mind(certify, on_demand=elsewhere)
    elsewhere.store = mind.store
    known = local.parse(STATE, "test")
    mind.store.apply(known.workloads[:1])
    yield mind
    mind.manager.stop()
    await mind.tasks.stop()


async def test_an_unknown_destination_is_fetched_and_decided_as_if_it_had_been_known(
    mind: Mind, elsewhere: Elsewhere
) -> None:
    elsewhere.knows["/10.0.0.2"] = STATE

    verdict = await mind.answer(TO_B)

    assert elsewhere.asked == [{"/10.0.0.2"}]
    assert verdict.hops[0].protocol is HopProtocol.HBONE
    assert verdict.epoch == mind.plane.epoch()


async def test_a_destination_that_nobody_knows_passes_through_after_one_question(
    mind: Mind, elsewhere: Elsewhere
) -> None:
    verdict = await mind.answer(TO_NOBODY)

    assert elsewhere.asked == [{"/192.0.2.1"}]
    assert (verdict.action, verdict.hops[0].protocol) == (Action.FORWARD, HopProtocol.TCP)


async def test_what_is_known_is_not_asked_for(mind: Mind, elsewhere: Elsewhere) -> None:
    mind.load()

    await mind.answer(TO_B)

    assert elsewhere.asked == []


async def test_a_waypoint_is_fetched_after_the_service_that_names_it(
    mind: Mind, elsewhere: Elsewhere
) -> None:
    elsewhere.knows |= {"/10.0.0.2": SERVICE, "ns/way.test": WAYPOINT}

    verdict = await mind.answer(TO_B)

    assert elsewhere.asked == [{"/10.0.0.2"}, {"ns/way.test"}]
    assert str(verdict.hops[0].address) == "10.0.0.9:15008"


async def test_what_is_not_answered_is_refused_and_not_passed_through(
    mind: Mind, elsewhere: Elsewhere
) -> None:
    elsewhere.is_silent = True

    verdict = await mind.answer(TO_NOBODY)

    assert (verdict.action, verdict.reason) == (Action.DENY, Reason.DECISION_TIMEOUT)
    assert verdict.reason.describe(verdict.detail) == "no decision within 5 s: silence"
    assert not verdict.ttl_s


async def test_fetching_ends_even_if_each_answer_leads_to_another_question(
    mind: Mind, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((local_workload, ports), *_) = local.parse(STATE, "test").workloads

    async def fetch(names: Collection[str]) -> None:
        elsewhere.asked.append(set(names))
        network = f"network-{len(elsewhere.asked)}"
        mind.store.apply(
            [WorkloadUpdate(dataclasses.replace(local_workload, network=network), ports)]
        )

    monkeypatch.setattr(elsewhere, "fetch", fetch)
    verdict = await mind.answer(TO_NOBODY)

    assert len(elsewhere.asked) == FETCH_ROUNDS
    assert (verdict.action, verdict.reason) == (Action.DENY, Reason.DECISION_TIMEOUT)
