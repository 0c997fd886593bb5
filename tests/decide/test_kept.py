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
from tests.state.build import ip, pod, service
from ztunnel_py.decide import inbound, outbound
from ztunnel_py.decide.key import InboundKey, OutboundKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.settings import Settings
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.store import DERIVED_MAX, ServiceRemoval, Store, WorkloadRemoval
from ztunnel_py.state.workload import NamespacedHostname

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


def test_what_is_kept_with_a_service_is_bounded() -> None:
    store = Store()
    store.apply([CLIENT, WEB, pod("p", "10.0.1.1", serves=SERVES)])
    found = store.service(NamespacedHostname("default", "web.test"))
    assert found is not None

    for n in range(2 * DERIVED_MAX):
        client = pod(f"c{n}", "10.0.3.1").workload
        outbound.decide(store, Settings(), TO_WEB, client)

    assert len(store.members(found)._derived) == DERIVED_MAX
