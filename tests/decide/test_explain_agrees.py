# SPDX-License-Identifier: Apache-2.0
"""Whatever the mesh is like, an explanation says what the real decisions say."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decide.verdicts import is_encrypted_and_allowed, plainly_received, sent
from tests.support.tree import edited, loaded
from ztunnel_py.decide import balance, names, near_miss
from ztunnel_py.decide.balance import Candidate, Mode
from ztunnel_py.decide.explain import explain
from ztunnel_py.decide.journey import Outcome
from ztunnel_py.decide.rbac import Attempt, compile_policy
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.standing import standings
from ztunnel_py.decide.verdict import Action
from ztunnel_py.errors import LocalStateError, Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr, parse_ip

if TYPE_CHECKING:
    from ztunnel_py.state.store import Store

Tree = dict[str, Any]

SOURCES = ["a/cart", "10.9.9.9"]
IPS = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::3"]
TARGETS = [
    *("10.96.0.1:80", "10.96.0.1:81", "[fd00:96::1]:80", "web.test:80", "192.0.2.1:443"),
    *("10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.2:15008", "127.0.0.1:15001"),
]


def some(values: list[Any], most: int = 2) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), max_size=most, unique_by=str)


def maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Tree]:
    """A mapping in which any key may be missing."""
    return st.fixed_dictionaries({}, optional=fields)


references = st.fixed_dictionaries(
    {
        "destination": st.sampled_from(["a/way.test", "a/wya.test", "/10.0.0.3", "/10.0.9.9"]),
        "hboneMtlsPort": st.sampled_from([15008, 15009]),
    }
)
names_tested = some([{"Exact": "a"}, {"Exact": "b"}, {"Presence": []}, {"Prefix": "a"}])
principals = some(
    [
        *({"Exact": "td/ns/a/sa/cart"}, {"Prefix": "td/"}, {"Suffix": "/sa/x"}),
        {"Presence": []},
    ]
)
accounts = some(
    [{"namespace": "a", "serviceAccount": "cart"}, {"namespace": "a", "serviceAccount": "x"}]
)
ranges = some(["10.0.0.0/24", "10.0.0.1/32", "10.9.0.0/16", "fd00::/16"])
port_lists = some([8080, 80, 81])
matches = maybe(
    namespaces=names_tested,
    notNamespaces=names_tested,
    principals=principals,
    notPrincipals=principals,
    serviceAccounts=accounts,
    notServiceAccounts=accounts,
    sourceIps=ranges,
    notSourceIps=ranges,
    destinationIps=ranges,
    notDestinationIps=ranges,
    destinationPorts=port_lists,
    notDestinationPorts=port_lists,
)
rules = st.lists(st.lists(st.lists(matches, max_size=2), max_size=2), max_size=2)
policy_bodies = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(["a", "b"]),
        "scope": st.sampled_from(["Global", "Namespace", "WorkloadSelector"]),
        "action": st.sampled_from(["Allow", "Deny"]),
        "dryRun": st.sampled_from([False, False, False, True]),
        "rules": rules,
    }
)
memberships = st.dictionaries(
    st.sampled_from(["a/web.test", "a/way.test"]),
    st.dictionaries(st.sampled_from([80, 15008]), st.sampled_from([0, 8080, 15008]), max_size=2),
    max_size=2,
)
localities = st.sampled_from(
    [{"region": "r", "zone": zone, "subzone": ""} for zone in ("x", "y", "z")]
)
workload_bodies = st.fixed_dictionaries(
    {
        "workloadIps": some(IPS[1:]),
        "services": memberships,
        "protocol": st.sampled_from(["HBONE", "HBONE", "TCP"]),
    },
    optional={
        "network": st.sampled_from(["", "far"]),
        "status": st.sampled_from(["Healthy", "Unhealthy"]),
        "capacity": st.sampled_from([0, 1, 3]),
        "locality": localities,
        "nativeTunnel": st.booleans(),
        "networkMode": st.sampled_from(["Standard", "HostNetwork"]),
        "authorizationPolicies": some(["a/p0", "a/p1", "b/gone"]),
        "waypoint": references,
        "networkGateway": references,
    },
)
balancers = st.fixed_dictionaries(
    {
        "routingPreferences": some(["Network", "Region", "Zone", "Node"], 3),
        "mode": st.sampled_from(["Standard", "Strict", "Failover", "Passthrough"]),
        "healthPolicy": st.sampled_from(["OnlyHealthy", "AllowAll"]),
    }
)
service_bodies = maybe(
    loadBalancer=balancers,
    ipFamilies=st.sampled_from(["Dual", "IPv4", "IPv6"]),
    visibility=st.sampled_from(["Public", "Namespace"]),
    waypoint=references,
    subjectAltNames=some([f"spiffe://td/ns/a/sa/web-{i}" for i in range(3)]),
    weightedWaypoints=st.lists(
        st.fixed_dictionaries({"destination": references, "weight": st.sampled_from([0, 1, 2])}),
        max_size=2,
    ),
)


@st.composite
def meshes(draw: st.DrawFn) -> Tree:
    """A client, up to three other workloads, a service and perhaps its waypoint, policies."""
    cart = {
        "uid": "c//Pod/a/cart",
        "name": "cart",
        "namespace": draw(st.sampled_from(["a", "a", "b"])),
        "serviceAccount": "cart",
        "trustDomain": "td",
        "workloadIps": ["10.0.0.1", "fd00::1"],
        "services": {},
        "protocol": draw(st.sampled_from(["HBONE", "HBONE", "HBONE", "TCP"])),
        "locality": draw(localities),
    }
    others = [
        {
            "uid": f"c//Pod/a/web-{i}",
            "name": f"web-{i}",
            "namespace": "a",
            "serviceAccount": f"web-{i}",
            "trustDomain": "td",
            **body,
        }
        for i, body in enumerate(draw(st.lists(workload_bodies, max_size=3)))
    ]
    web = {
        "name": "web",
        "namespace": "a",
        "hostname": "web.test",
        "vips": ["/10.96.0.1", "/fd00:96::1"],
        "ports": draw(st.sampled_from([{80: 8080}, {80: 0}, {81: 8080}, {80: 8080, 81: 15008}])),
        **draw(service_bodies),
    }
    way = {"name": "way", "namespace": "a", "hostname": "way.test", "vips": [], "ports": {15008: 0}}
    policies = [
        {"name": f"p{i}", **body}
        for i, body in enumerate(draw(st.lists(policy_bodies, max_size=2)))
    ]
    services = draw(st.sampled_from([[web], [web, way], []]))
    return {"workloads": [cart, *others], "services": services, "policies": policies}


def source_of(store: Store, src: str) -> str:
    """The client may live in another namespace."""
    return "cart" if src == "a/cart" else src


def is_answerable(store: Store, dst: str) -> bool:
    return dst != "web.test:80" or any(True for _ in store.services())


@settings(max_examples=200, deadline=None)
@given(meshes(), st.sampled_from(SOURCES), st.sampled_from(TARGETS))
def test_explanation_and_verdicts_agree(tree: Tree, src: str, dst: str) -> None:
    store = loaded(tree)
    src = source_of(store, src)
    if not is_answerable(store, dst):
        return

    found = explain(store, Settings(), src, dst)

    is_allowed = is_encrypted_and_allowed(store, src, dst)
    assert (found.outcome is Outcome.ENCRYPTED) is is_allowed
    assert (found.obstacle is None) is is_allowed
    assert (found.changes == ()) is is_allowed
    assert bool(found.fix) is not is_allowed
    route = names.route(store, src, dst)
    if not route.is_enrolled:
        assert found.steps[0].is_obstacle
        there = found.journey.decisive.workload
        if found.outcome is Outcome.DENIED and there is not None:
            address = found.journey.decisive.address
            assert address is not None
            said = plainly_received(store, route._replace(dst=address), there)
            assert said.reason is Reason.POLICY_DENIED
        return
    first = sent(store, route)
    assert found.journey.outbound is not None
    assert (found.journey.outbound.action, found.journey.outbound.hops) == (
        first.action,
        first.hops,
    )
    if first.action is Action.DENY:
        assert found.reason == first.reason.describe(first.detail)
        is_empty = first.reason is Reason.NO_HEALTHY_UPSTREAM
        assert (found.outcome is Outcome.NO_UPSTREAM) is is_empty


@settings(max_examples=200, deadline=None)
@given(meshes(), st.sampled_from(SOURCES), st.sampled_from(TARGETS))
def test_advised_changes_help_and_the_mesh_is_left_alone(tree: Tree, src: str, dst: str) -> None:
    store = loaded(tree)
    src = source_of(store, src)
    if not is_answerable(store, dst):
        return

    found = explain(store, Settings(), src, dst)
    again = explain(store, Settings(), src, dst)

    assert again == found
    for change in found.changes or ():
        store.apply(change.updates)
    edits = [edit.tree() for change in found.changes or () for edit in change.edits]
    is_advised = found.changes is not None
    assert is_encrypted_and_allowed(store, src, dst) is is_advised
    assert is_encrypted_and_allowed(loaded(edited(tree, edits)), src, dst) is is_advised


@settings(max_examples=200, deadline=None, derandomize=True)  # a bounded search may miss the least
@given(meshes(), st.sampled_from(SOURCES), st.sampled_from(TARGETS))
def test_no_advised_edit_is_superfluous(tree: Tree, src: str, dst: str) -> None:
    store = loaded(tree)
    src = source_of(store, src)
    if not is_answerable(store, dst):
        return

    found = explain(store, Settings(), src, dst)

    edits = [edit.tree() for change in found.changes or () for edit in change.edits]
    for edit in edits:
        rest = [other for other in edits if other is not edit]
        assert not _lets_through(tree, rest, src, dst)


def _lets_through(tree: Tree, edits: list[Tree], src: str, dst: str) -> bool:
    """Whether some of the edits are enough; those that need others are not."""
    try:
        after = loaded(edited(tree, edits))
    except (KeyError, IndexError, LocalStateError):
        return False
    return is_encrypted_and_allowed(after, src, dst)


@settings(max_examples=200, deadline=None)
@given(meshes(), st.sampled_from([80, 81, 15008]), st.sampled_from(list(Mode)))
def test_usable_endpoints_are_the_balancers_candidates(tree: Tree, port: int, mode: Mode) -> None:
    store = loaded(tree)
    cart = store.workload("c//Pod/a/cart")
    assert cart is not None

    for service in store.services():
        found = standings(store, cart, service, port, mode)
        usable = [
            Candidate(one.workload, one.target)
            for one in found
            if one.bar is None and one.workload is not None and one.target is not None
        ]
        assert usable == balance.candidates(store.members(service), cart, port, mode)
        assert len(usable) == sum(one.bar is None for one in found)


attempts = st.builds(
    Attempt.of,
    st.sampled_from([parse_ip(text) for text in ("10.0.0.1", "10.9.0.1", "fd00::1")]),
    st.sampled_from([SockAddr.parse("10.0.0.2:8080"), SockAddr.parse("[fd00::3]:80")]),
    st.sampled_from([None, Identity("td", "a", "cart"), Identity("corp", "b", "x")]),
)


@settings(max_examples=200, deadline=None)
@given(meshes(), attempts)
def test_near_misses_are_misses_and_hits_are_hits(tree: Tree, attempt: Attempt) -> None:
    policies = list(loaded(tree).policies().values())

    for policy in policies:
        near = near_miss.nearest(policy, attempt)
        is_hit = compile_policy(policy)(attempt)
        assert (near is not None and not near.unmet) is is_hit
        assert bool(near_miss.holding(policy, attempt)) is is_hit
        unmet = itertools.chain.from_iterable(one.misses for one in near.unmet) if near else ()
        assert all(miss.is_unwanted is bool(miss.culprits) for miss in unmet)
