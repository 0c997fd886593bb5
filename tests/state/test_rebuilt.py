# SPDX-License-Identifier: Apache-2.0
"""A store that followed changes is the store that never knew anything but what is left of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state.build import pod, policy, service
from tests.state.test_store import contents
from ztunnel_py.state.policy import PolicyScope
from ztunnel_py.state.service import HealthPolicy, LoadBalancer, Visibility
from ztunnel_py.state.store import (
    Change,
    PolicyRemoval,
    PolicyUpdate,
    ServiceRemoval,
    ServiceUpdate,
    Store,
    WorkloadRemoval,
    WorkloadUpdate,
)
from ztunnel_py.state.workload import Health, NamespacedHostname, NetworkMode, Protocol

if TYPE_CHECKING:
    from ztunnel_py.state.service import Service
    from ztunnel_py.state.store import Update

NAMES = ("a", "b", "c")
HOSTS = ("web.test", "db.test", "absent.test")
NAMESPACES = ("default", "other")
IPS = ("10.0.0.1", "10.0.0.2", "2001:db8::1")
BALANCERS = (None, LoadBalancer(health_policy=HealthPolicy.ALLOW_ALL))

names, hosts = st.sampled_from(NAMES), st.sampled_from(HOSTS)
namespaces = st.sampled_from(NAMESPACES)
services = st.builds("{}/{}".format, namespaces, hosts)


@st.composite
def workload_updates(draw: st.DrawFn) -> Update:
    fields: dict[str, Any] = {
        "namespace": draw(namespaces),
        "health": draw(st.sampled_from(Health)),
        "protocol": draw(st.sampled_from(Protocol)),
        "network_mode": draw(st.sampled_from([NetworkMode.STANDARD, *NetworkMode])),
        "node": draw(st.sampled_from(["here", "there"])),
        "service_account": draw(names),
        "uid": f"demo//{draw(st.sampled_from(['Pod', 'Entry']))}/{draw(names)}",
    }
    serves = draw(st.dictionaries(services, st.just({80: 8080}), max_size=3))
    return pod(
        draw(names), *draw(st.lists(st.sampled_from(IPS), max_size=3)), serves=serves, **fields
    )


@st.composite
def service_updates(draw: st.DrawFn) -> Update:
    return service(
        draw(st.sampled_from(HOSTS[:2])),
        *draw(st.lists(st.sampled_from(["/10.1.0.1", "/10.1.0.2"]), unique=True)),
        cidrs=tuple(
            draw(st.lists(st.sampled_from(["/10.2.0.0/16", "n/10.2.0.0/24"]), unique=True))
        ),
        namespace=draw(namespaces),
        load_balancer=draw(st.sampled_from(BALANCERS)),
        visibility=draw(st.sampled_from(Visibility)),
        canonical=draw(st.booleans()),
    )


@st.composite
def policy_updates(draw: st.DrawFn) -> Update:
    scope = draw(st.sampled_from(PolicyScope))
    return policy(draw(names), namespace=draw(namespaces), scope=scope)


removals = st.one_of(
    st.builds(WorkloadRemoval, st.builds("demo//{}/{}".format, st.just("Pod"), names)),
    st.builds(ServiceRemoval, services.map(NamespacedHostname.parse)),
    st.builds(PolicyRemoval, st.builds("{}/{}".format, namespaces, names)),
)
updates = st.one_of(workload_updates(), workload_updates(), service_updates(), policy_updates())
batches = st.lists(st.lists(updates | removals, max_size=6), max_size=8)


@settings(max_examples=250, deadline=None)
@given(batches, st.sampled_from(["", "here"]))
def test_any_sequence_of_changes_leaves_what_is_left_of_it(
    pushes: list[list[Update]], node: str
) -> None:
    store = Store(node)
    for push in pushes:
        store.apply(push)
        members_of(store)  # kept from now on, until they change

    rebuilt = Store(node)
    rebuilt.apply(left_of([update for push in pushes for update in push]))

    assert unordered(store) == unordered(rebuilt)
    assert members_of(store) == members_of(rebuilt)
    assert store.staged() == rebuilt.staged()


@settings(max_examples=150, deadline=None)
@given(batches)
def test_epochs_move_when_and_only_when_something_may_have_changed(
    pushes: list[list[Update]],
) -> None:
    store = Store("here")
    for push in pushes:
        before, was = (store.discovery_epoch, store.policy_epoch), unordered(store)

        change = store.apply(push)

        moved = (Change.DISCOVERY in change, Change.POLICY in change)
        after = (store.discovery_epoch, store.policy_epoch)
        assert after == (before[0] + moved[0], before[1] + moved[1])
        assert change is not Change.NONE or unordered(store) == was


def left_of(updates: list[Update]) -> list[Update]:
    """What is there in the end, the latest last."""
    left: dict[object, Update] = {}
    for update in updates:
        match update:
            case WorkloadUpdate(workload, _):
                left.pop(workload.uid, None)
                left[workload.uid] = update
            case ServiceUpdate(found, _):
                left.pop(found.key, None)
                left[found.key] = update
            case PolicyUpdate(key, _):
                left.pop(("policy", key), None)
                left["policy", key] = update
            case PolicyRemoval(key):
                left.pop(("policy", key), None)
            case WorkloadRemoval(gone) | ServiceRemoval(gone):
                left.pop(gone, None)
    return list(left.values())


def unordered(store: Store) -> dict[str, object]:
    """The contents; services that share an address have no order, since it is that of arrival."""

    def by_key(index: dict[object, tuple[Service, ...]]) -> dict[object, list[Service]]:
        return {key: sorted(found, key=lambda one: one.key) for key, found in index.items()}

    found: dict[str, Any] = contents(store)
    shared = ("_by_host", "_by_vip", "_by_cidr")
    return {name: by_key(value) if name in shared else value for name, value in found.items()}


def members_of(store: Store) -> dict[object, dict[str, object]]:
    """The members of all services."""
    return {
        found.key: {
            endpoint.workload_uid: (endpoint, w) for endpoint, w in store.members(found).pairs
        }
        for found in store.services()
    }
