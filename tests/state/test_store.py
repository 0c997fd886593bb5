# SPDX-License-Identifier: Apache-2.0
"""The store's indexes, whatever the order in which things arrive."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.state.build import at, ip, pod, policy, service
from ztunnel_py.state.policy import PolicyScope
from ztunnel_py.state.service import Endpoint, HealthPolicy, LoadBalancer, Visibility
from ztunnel_py.state.store import (
    Change,
    PolicyRemoval,
    ServiceRemoval,
    Store,
    WorkloadRemoval,
)
from ztunnel_py.state.workload import (
    Health,
    NamespacedHostname,
    NetworkMode,
    Protocol,
    WorkloadInfo,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.state.service import Service
    from ztunnel_py.state.store import (
        Update,
    )

WEB = "default/web.test"
KEY = NamespacedHostname.parse(WEB)
ALLOW_ALL = LoadBalancer(health_policy=HealthPolicy.ALLOW_ALL)
SERVES = {WEB: {80: 8080}}


def store_of(*updates: Update, node: str = "") -> Store:
    store = Store(node)
    store.apply(updates)
    return store


def endpoint_uids(store: Store, key: NamespacedHostname = KEY) -> set[str]:
    found = store.service(key)
    assert found is not None
    return {endpoint.workload_uid for endpoint in store.endpoints(found)}


# --- endpoints


@pytest.mark.spec("state-37")
def test_workload_before_its_service_is_staged_and_then_an_endpoint() -> None:
    store = store_of(pod("a", "10.0.0.1", serves=SERVES))
    assert list(store.staged()) == [KEY]

    store.apply([service("web.test", "/10.1.0.1")])

    assert endpoint_uids(store) == {"demo//Pod/default/a"}
    assert store.staged() == {}


@pytest.mark.spec("state-38")
@pytest.mark.parametrize(("balancer", "kept"), [(None, False), (ALLOW_ALL, True)])
def test_unhealthy_staged_endpoint_counts_only_where_all_are_allowed(
    balancer: LoadBalancer | None, kept: bool
) -> None:
    store = store_of(pod("a", "10.0.0.1", serves=SERVES, health=Health.UNHEALTHY))

    store.apply([service("web.test", load_balancer=balancer)])

    assert bool(endpoint_uids(store)) is kept


@pytest.mark.spec("state-39")
def test_workload_that_turns_unhealthy_is_no_endpoint_any_more() -> None:
    store = store_of(service("web.test"), pod("a", serves=SERVES))

    store.apply([pod("a", serves=SERVES, health=Health.UNHEALTHY)])

    assert endpoint_uids(store) == set()


def test_unhealthy_endpoint_comes_back_when_the_service_allows_all() -> None:
    store = store_of(service("web.test"), pod("a", serves=SERVES, health=Health.UNHEALTHY))

    store.apply([service("web.test", load_balancer=ALLOW_ALL)])

    assert endpoint_uids(store) == {"demo//Pod/default/a"}


@pytest.mark.spec("state-40")
@pytest.mark.parametrize("is_known", [True, False])
def test_workload_that_leaves_a_service_is_no_endpoint_any_more(is_known: bool) -> None:
    store = store_of(pod("a", serves=SERVES))
    if is_known:
        store.apply([service("web.test")])

    store.apply([pod("a")])

    assert store.staged() == {}
    assert not is_known or endpoint_uids(store) == set()


@pytest.mark.spec("state-43")
@pytest.mark.parametrize("place", [0, 25, 50])
def test_service_and_its_workloads_in_one_push_in_any_order(place: int) -> None:
    push: list[Update] = [pod(f"p{i}", f"10.0.0.{i}", serves=SERVES) for i in range(50)]
    push.insert(place, service("web.test"))

    store = store_of(*push)

    assert len(endpoint_uids(store)) == 50
    assert store.discovery_epoch == 1


def test_service_that_comes_back_finds_its_endpoints() -> None:
    store = store_of(service("web.test"), pod("a", serves=SERVES))

    store.apply([ServiceRemoval(KEY)])
    store.apply([service("web.test")])

    assert endpoint_uids(store) == {"demo//Pod/default/a"}


def test_endpoint_written_with_a_service_follows_its_workload() -> None:
    written = Endpoint("demo//Pod/default/a", {80: 8080})
    store = store_of(service("web.test")._replace(endpoints=(written,)))
    found = store.service(KEY)
    assert found is not None

    def names() -> list[tuple[str, int]]:
        return [(w.name, w.capacity) for _, w in store.members(found).pairs]

    seen = [names()]
    for update in (pod("a"), pod("a", capacity=3), WorkloadRemoval("demo//Pod/default/a")):
        store.apply([update])
        seen.append(names())

    assert seen == [[], [("a", 1)], [("a", 3)], []]


def test_members_of_a_service_that_was_replaced_are_those_of_its_key() -> None:
    store = store_of(service("web.test"), pod("a", serves=SERVES))
    old = store.service(KEY)
    assert old is not None
    assert store.members(old) is store.members(old)

    store.apply([service("web.test", load_balancer=ALLOW_ALL)])

    new = store.service(KEY)
    assert new is not None
    assert store.members(old).service is old
    assert store.members(new).service is new
    assert store.members(new) is store.members(new)


def test_update_and_removal_in_one_push_leave_no_endpoint() -> None:
    store = store_of(service("web.test"), pod("a", serves=SERVES))

    store.apply([pod("a", serves=SERVES), WorkloadRemoval("demo//Pod/default/a")])

    assert endpoint_uids(store) == set()


@pytest.mark.spec("state-44")
def test_removed_workload_is_found_by_nothing() -> None:
    info = WorkloadInfo("a", "default", "a")
    store = store_of(service("web.test"), pod("a", "10.0.0.1", serves=SERVES))
    assert store.local_workload(info) is not None

    store.apply([WorkloadRemoval("demo//Pod/default/a")])

    assert store.workload("demo//Pod/default/a") is None
    assert store.workload_at(at("10.0.0.1")) is None
    assert store.local_workload(info) is None
    assert endpoint_uids(store) == set()


def test_removals_of_what_is_unknown_change_nothing() -> None:
    store = Store()

    change = store.apply([WorkloadRemoval("x"), ServiceRemoval(KEY), PolicyRemoval("a/b")])

    assert change is Change.NONE
    assert (store.discovery_epoch, store.policy_epoch) == (0, 0)


# --- workloads by address


@pytest.mark.spec("state-46")
@pytest.mark.parametrize("is_pod_first", [True, False])
def test_pod_goes_before_a_workload_entry_on_the_same_address(is_pod_first: bool) -> None:
    entry = pod("e", "10.0.0.1", uid="demo/networking.istio.io/WorkloadEntry/default/e")
    both = [pod("a", "10.0.0.1", protocol=Protocol.TCP), entry]
    store = store_of(*(both if is_pod_first else reversed(both)))
    assert store.workload_at(at("10.0.0.1")) == store.workload("demo//Pod/default/a")

    store.apply([WorkloadRemoval("demo//Pod/default/a")])

    assert store.workload_at(at("10.0.0.1")) == entry.workload


def test_newest_of_equal_rank_wins_an_address() -> None:
    store = store_of(pod("a", "10.0.0.1"), pod("b", "10.0.0.1"))

    found = store.workload_at(at("10.0.0.1"))

    assert found is not None
    assert found.name == "b"


def test_host_network_workloads_are_not_found_by_address() -> None:
    mode = NetworkMode.HOST_NETWORK
    store = store_of(
        pod("a", "10.0.0.1", network_mode=mode, serves=SERVES),
        pod("b", "10.0.0.1", network_mode=mode),
        service("web.test"),
    )

    assert store.workload_at(at("10.0.0.1")) is None
    assert endpoint_uids(store) == {"demo//Pod/default/a"}


@pytest.mark.spec("state-56")
@pytest.mark.parametrize(("node", "found"), [("a", False), ("b", True), ("", True)])
def test_only_workloads_of_this_node_are_local(node: str, found: bool) -> None:
    store = store_of(pod("w", "10.0.0.1", node="b"), node=node)

    local = store.local_workload(WorkloadInfo("w", "default", "w"))

    assert (local is not None) is found


# --- services by address and host


def hostname(found: Service | None) -> str:
    return found.hostname if found is not None else ""


@pytest.mark.spec("state-36")
def test_range_matches_within_and_plain_vip_exactly() -> None:
    store = store_of(
        service("range.test", cidrs=("/10.0.0.0/24",)), service("vip.test", "/10.2.0.0")
    )

    assert hostname(store.service_at(at("10.0.0.7"))) == "range.test"
    assert hostname(store.service_at(at("10.2.0.0"))) == "vip.test"
    assert store.service_at(at("10.2.0.1")) is None


@pytest.mark.spec("state-41")
def test_extra_vip_keeps_endpoints_and_finds_the_same_service() -> None:
    store = store_of(service("web.test", "/10.1.0.1"), pod("a", serves=SERVES))

    store.apply([service("web.test", "/10.1.0.1", "/10.1.0.2")])

    assert store.service_at(at("10.1.0.1")) is store.service_at(at("10.1.0.2"))
    assert endpoint_uids(store) == {"demo//Pod/default/a"}


@pytest.mark.spec("state-42")
def test_vip_that_is_not_sent_again_is_gone() -> None:
    store = store_of(service("web.test", "/10.1.0.1", "/10.1.0.2"))

    store.apply([service("web.test", "/10.1.0.1")])

    assert store.service_at(at("10.1.0.2")) is None


@pytest.mark.spec("state-48")
def test_namespaces_that_share_a_vip_each_get_their_own() -> None:
    a = service("a.test", "/10.1.0.1", namespace="a")
    b = service("b.test", "/10.1.0.1", namespace="b")
    canonical = service("b.test", "/10.1.0.1", namespace="b", canonical=True)
    store = store_of(a, b)

    seen = [hostname(store.service_at(at("10.1.0.1"), ns)) for ns in ("a", "b", "c")]
    store.apply([canonical])

    assert seen == ["a.test", "b.test", "a.test"]
    assert hostname(store.service_at(at("10.1.0.1"), "c")) == "b.test"
    assert hostname(store.service_at(at("10.1.0.1"), "a")) == "a.test"


def test_vip_shared_within_a_namespace_goes_back_to_the_other_service() -> None:
    store = store_of(service("a.test", "/10.1.0.1"), service("b.test", "/10.1.0.1"))
    assert hostname(store.service_at(at("10.1.0.1"))) == "b.test"

    store.apply([ServiceRemoval(NamespacedHostname("default", "b.test"))])

    assert hostname(store.service_at(at("10.1.0.1"))) == "a.test"


def test_resent_service_keeps_the_slot_of_its_namespace() -> None:
    a = service("x.test", "/10.1.0.1", namespace="a")
    store = store_of(a, service("x.test", "/10.1.0.1", namespace="b"))

    store.apply([a])

    found = store.service_of_host("x.test", "c")
    assert found is not None
    assert found.namespace == "a"


def test_namespace_visible_service_is_hidden_from_other_namespaces() -> None:
    hidden = service(
        "web.test", "/10.1.0.1", cidrs=("/10.2.0.0/24",), visibility=Visibility.NAMESPACE
    )
    store = store_of(hidden)

    def found_by(namespace: str | None) -> list[bool]:
        return [
            store.service_at(at("10.1.0.1"), namespace) is not None,
            store.service_at(at("10.2.0.9"), namespace) is not None,
            store.service_of_host("web.test", namespace) is not None,
        ]

    assert found_by("other") == [False] * 3
    assert found_by("default") == [True] * 3
    assert found_by(None) == [True] * 3


def test_of_services_that_share_a_vip_only_visible_ones_count() -> None:
    hidden = service("a.test", "/10.1.0.1", namespace="a", visibility=Visibility.NAMESPACE)
    store = store_of(hidden, service("b.test", "/10.1.0.1", namespace="b"))

    seen = [hostname(store.service_at(at("10.1.0.1"), ns)) for ns in ("a", "b", "c")]

    assert seen == ["a.test", "b.test", "b.test"]


@pytest.mark.spec("state-50")
def test_invisible_vip_gives_way_to_a_visible_range() -> None:
    store = store_of(
        service("vip.test", "/10.1.0.1", visibility=Visibility.NAMESPACE),
        service("range.test", cidrs=("/10.1.0.0/24",), namespace="b"),
    )

    assert hostname(store.service_at(at("10.1.0.1"), "b")) == "range.test"


@pytest.mark.spec("state-51")
@pytest.mark.parametrize(("namespace", "expected"), [("a", "wide.test"), ("c", "narrow.test")])
def test_own_namespace_beats_the_narrower_range(namespace: str, expected: str) -> None:
    store = store_of(
        service("narrow.test", cidrs=("/10.1.0.0/24",), namespace="b"),
        service("wide.test", cidrs=("/10.1.0.0/16",), namespace="a"),
    )

    assert hostname(store.service_at(at("10.1.0.1"), namespace)) == expected


@pytest.mark.spec("state-52")
def test_ranges_match_only_in_their_network_and_family() -> None:
    store = store_of(service("range.test", cidrs=("A/0.0.0.0/0",)))

    assert hostname(store.service_at(at("10.1.0.1", "A"))) == "range.test"
    assert store.service_at(at("10.1.0.1", "B")) is None
    assert store.service_at(at("::1", "A")) is None


@pytest.mark.spec("state-53")
def test_range_finds_the_endpoints_of_now() -> None:
    store = store_of(service("web.test", cidrs=("/10.1.0.0/24",)), pod("a", serves=SERVES))

    store.apply([pod("b", serves=SERVES), WorkloadRemoval("demo//Pod/default/a")])

    found = store.service_at(at("10.1.0.9"))
    assert found is not None
    assert [e.workload_uid for e in store.endpoints(found)] == ["demo//Pod/default/b"]


def test_replaced_service_leaves_nothing_behind() -> None:
    store = store_of(service("web.test", "/10.1.0.1", cidrs=("/10.2.0.0/24",)))

    store.apply([service("web.test")])
    store.apply([ServiceRemoval(KEY)])

    assert store.service_at(at("10.1.0.1")) is None
    assert store.service_at(at("10.2.0.1")) is None
    assert store.service_of_host("web.test") is None


def test_reference_by_hostname_finds_a_service_then_a_workload() -> None:
    store = store_of(pod("a", hostname="gw.test"), service("web.test"))

    assert store.find(KEY) is store.service(KEY)
    assert store.find(NamespacedHostname("default", "gw.test")) == pod("a", hostname="gw.test")[0]
    assert store.find(NamespacedHostname("other", "gw.test")) is None


# --- policies, epochs, notification


def test_policy_moves_between_scopes() -> None:
    store = store_of(policy("p"))
    assert list(store.policies_of_namespace("default")) == ["default/p"]

    store.apply([policy("p", scope=PolicyScope.GLOBAL)])
    assert list(store.policies_of_namespace("")) == ["default/p"]

    store.apply([policy("p", scope=PolicyScope.WORKLOAD_SELECTOR)])
    assert not store.policies_of_namespace("")
    assert not store.policies_of_namespace("default")
    assert store.policy("default/p") is not None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (pod("a", "10.0.0.2"), Change.DISCOVERY),
        (pod("a", authorization_policies=("x/y",)), Change.DISCOVERY | Change.POLICY),
        (service("web.test"), Change.DISCOVERY),
        (policy("p"), Change.POLICY),
    ],
)
def test_each_change_moves_its_epoch_and_tells_the_listeners(
    changed: Update, expected: Change
) -> None:
    store = store_of(pod("a"))
    heard: list[Change] = []
    undo = store.subscribe(heard.append)
    before = (store.discovery_epoch, store.policy_epoch)

    store.apply([changed])
    undo()
    store.apply([service("late.test")])

    assert heard == [expected]
    after = (store.discovery_epoch - 1, store.policy_epoch)
    moved = (Change.DISCOVERY in expected, Change.POLICY in expected)
    assert after == (before[0] + moved[0], before[1] + moved[1])


BOTH = Change.DISCOVERY | Change.POLICY


@pytest.mark.parametrize(
    ("node", "changed", "expected"),
    [
        ("here", pod("a", node="here", trust_domain="td2"), BOTH),
        ("here", pod("a", node="here", service_account="other"), BOTH),
        ("here", pod("a", node="there"), BOTH),
        ("here", pod("b", node="here"), BOTH),
        ("here", WorkloadRemoval("demo//Pod/default/a"), BOTH),
        ("here", pod("b", node="there"), Change.DISCOVERY),
        ("there", pod("a", node="there", authorization_policies=("x/y",)), Change.DISCOVERY),
        ("there", WorkloadRemoval("demo//Pod/default/a"), Change.DISCOVERY),
    ],
)
def test_the_rights_of_this_nodes_workloads_belong_to_the_policies(
    node: str, changed: Update, expected: Change
) -> None:
    store = Store("here")
    store.apply([pod("a", node=node)])

    assert store.apply([changed]) == expected


def test_a_batch_that_fails_half_way_has_changed_something() -> None:
    store = Store()
    heard: list[Change] = []
    store.subscribe(heard.append)

    def broken() -> Iterator[Update]:
        yield pod("a")
        raise ValueError

    with pytest.raises(ValueError):
        store.apply(broken())

    assert heard == [BOTH]
    assert store.discovery_epoch == store.policy_epoch == 1


def test_listener_sees_the_whole_batch() -> None:
    store = Store()
    seen: list[int] = []
    store.subscribe(lambda _: seen.append(len(list(store.workloads()))))

    store.apply([pod("a"), pod("b")])

    assert seen == [2]


def test_indexes_hold_no_more_than_a_store_that_never_knew_what_is_gone() -> None:
    fixed: list[Update] = [pod("a", "10.0.0.1", serves=SERVES), service("web.test", "/10.1.0.1")]
    passing: list[Update] = [
        pod("b", "10.0.0.1", "10.0.0.2", serves=SERVES),
        service("b.test", "/10.1.0.1", cidrs=("/10.2.0.0/24",)),
        policy("p"),
    ]
    removals: list[Update] = [
        WorkloadRemoval("demo//Pod/default/b"),
        ServiceRemoval(NamespacedHostname("default", "b.test")),
        PolicyRemoval("default/p"),
    ]
    expected = contents(store_of(*fixed))

    orders = [store_of(*order, *removals) for order in itertools.permutations(fixed + passing)]

    assert all(contents(store) == expected for store in orders)


def test_workloads_of_this_node_are_known_and_every_change_of_them_is_counted() -> None:
    store = store_of(pod("a", node="here"), pod("b", node="there"), node="here")
    versions = [store.local_version]

    for update in (
        pod("b", node="there", workload_name="changed"),
        pod("a", node="here", protocol=Protocol.TCP),
        pod("b", node="here"),
        WorkloadRemoval("demo//Pod/default/b"),
    ):
        store.apply([update])
        versions.append(store.local_version)

    assert [late > early for early, late in itertools.pairwise(versions)] == [
        False,
        True,
        True,
        True,
    ]
    assert [one.name for one in store.local_workloads()] == ["a"]
    assert [store.has_account("default", account) for account in ("a", "b")] == [True, False]
    assert store.copy().local_version == store.local_version


def contents(store: Store) -> dict[str, object]:
    """Everything in the store but what counts changes."""
    counts = ("_discovery_epoch", "_policy_epoch", "_policies_version", "_local_version")
    hidden = (*counts, "_listeners", "_members", "_former")
    return {name: value for name, value in vars(store).items() if name not in hidden}


def test_ip_of_a_mapped_address_is_not_canonicalised() -> None:
    store = store_of(pod("a", "::ffff:10.0.0.1"))

    assert store.workload_at(at("10.0.0.1")) is None
    assert ip("::ffff:10.0.0.1") != ip("10.0.0.1")
