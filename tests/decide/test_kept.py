# SPDX-License-Identifier: Apache-2.0
"""What decisions keep changes nothing: each is that of a store that was never asked before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decide.test_uses import (
    HOSTS,
    INFO,
    configurations,
    outgoing,
    plaintext,
    pods,
    policies,
    request,
    services,
    updates,
)
from tests.state.build import at, ip, pod, service
from ztunnel_py.decide import inbound, outbound
from ztunnel_py.decide.key import InboundKey, OutboundKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.settings import Settings
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.store import DERIVED_MAX, ServiceRemoval, Store, WorkloadRemoval
from ztunnel_py.state.workload import GatewayAddress, NamespacedHostname

if TYPE_CHECKING:
    from tests.decide.test_uses import Key
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Update

names = st.sampled_from(["me", "a", "b"])
later = st.one_of(
    names.flatmap(pods),
    st.sampled_from(HOSTS).flatmap(services),
    policies(),
    st.builds(WorkloadRemoval, names.map("demo//Pod/default/{}".format)),
    st.sampled_from(HOSTS).map(lambda host: ServiceRemoval(NamespacedHostname("default", host))),
)
keys = st.lists(st.one_of(outgoing, outgoing, request, plaintext), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(updates, st.lists(later, max_size=5), keys, configurations)
def test_a_decision_after_any_changes_is_that_of_a_store_that_was_never_asked(
    state: list[Update], changes: list[Update], asked: list[Key], chosen: Settings
) -> None:
    store, done = Store(), []
    rulebook = Rulebook(store)
    for push in (state, *([change] for change in changes)):
        store.apply(push)
        done += push

        for key in asked:
            fresh = Store()
            fresh.apply(done)
            assert decide(store, rulebook, chosen, key) == decide(
                fresh, Rulebook(fresh), chosen, key
            )


def decide(store: Store, rulebook: Rulebook, chosen: Settings, key: Key) -> Verdict:
    local = store.local_workload(INFO) or INFO
    match key:
        case OutboundKey():
            return outbound.decide(store, chosen, key, local)
        case InboundKey():
            return inbound.decide(store, rulebook, chosen, key, local)
        case _:
            return inbound.decide_passthrough(store, rulebook, chosen, key, local)


CLIENT = pod("me", "10.0.0.1")
TO_WEB = OutboundKey("w", ip("10.0.0.1"), SockAddr.parse("10.1.0.1:80"))
SERVES = {"default/web.test": {80: 8080}}
WEB = service("web.test", "/10.1.0.1")


def test_hops_of_a_service_are_the_same_until_its_endpoints_change() -> None:
    store = Store()
    store.apply([CLIENT, WEB, *(pod(f"p{n}", f"10.0.1.{n}", serves=SERVES) for n in range(5))])

    def hops() -> tuple[object, ...]:
        return outbound.decide(store, Settings(), TO_WEB, CLIENT.workload).hops

    first = hops()
    store.apply([pod("other", "10.0.2.1")])
    assert hops() is first

    store.apply([pod("p2", "10.0.1.2", serves=SERVES, capacity=7)])
    second = hops()
    assert sum(hop in first for hop in second) == 4
    assert sum(any(hop is one for one in first) for hop in second) == 4


def test_ports_of_a_service_are_kept_apart() -> None:
    store = Store()
    both = {80: 8080, 81: 8081}
    store.apply([CLIENT, service("web.test", "/10.1.0.1", ports=both)])
    store.apply([pod("p", "10.0.1.1", serves={"default/web.test": both})])
    keys = [TO_WEB, TO_WEB._replace(dst=TO_WEB.dst._replace(port=81))]

    verdicts = [outbound.decide(store, Settings(), key, CLIENT.workload) for key in keys]

    assert [v.hops[0].authority for v in verdicts] == ["10.0.1.1:8080", "10.0.1.1:8081"]


def test_a_way_through_a_gateway_is_kept_for_one_epoch() -> None:
    store = Store()
    way = GatewayAddress(NamespacedHostname("default", "gw.test"), 15008)
    members = {"default/gw.test": {15008: 15008}}
    split = pod("split", network="far", network_gateway=way, serves=SERVES)
    store.apply([CLIENT, WEB, split, service("gw.test", ports={15008: 15008})])

    def decided() -> list[str]:
        verdict = outbound.decide(store, Settings(), TO_WEB, CLIENT.workload)
        return [str(hop.address) for hop in verdict.hops]

    assert decided() == []
    store.apply([pod("gw", "10.9.9.1", serves=members)])
    assert decided() == decided() == ["10.9.9.1:15008"]
    store.apply([pod("gw", "10.9.9.2", serves=members)])
    assert decided() == ["10.9.9.2:15008"]


def test_a_way_that_reads_the_source_is_not_kept() -> None:
    """The service is known on the client's network only, so its pods count as called directly."""
    store, chosen = Store(), Settings(network="other")
    way = pod("way", "10.0.9.1")
    guarded = pod("p", "10.0.1.1", serves=SERVES, waypoint=GatewayAddress(at("10.0.9.1"), 15008))
    store.apply([way, WEB, guarded])

    verdicts = [
        outbound.decide(store, chosen, TO_WEB._replace(src=ip(src)), way.workload)
        for src in ("10.0.9.1", "10.0.9.2", "10.0.9.1")
    ]

    hops = [str(verdict.hops[0].address) for verdict in verdicts]
    assert hops == ["10.0.1.1:15008", "10.0.9.1:15008", "10.0.1.1:15008"]
    assert all(verdict.uses_source for verdict in verdicts)


def test_what_is_kept_with_a_service_is_bounded() -> None:
    store = Store()
    store.apply([CLIENT, WEB, pod("p", "10.0.1.1", serves=SERVES)])
    found = store.service(NamespacedHostname("default", "web.test"))
    assert found is not None

    for n in range(2 * DERIVED_MAX):
        client = pod(f"c{n}", "10.0.3.1").workload
        outbound.decide(store, Settings(), TO_WEB, client)

    assert len(store.members(found)._derived) == DERIVED_MAX
