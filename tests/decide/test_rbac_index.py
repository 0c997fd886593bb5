# SPDX-License-Identifier: Apache-2.0
"""Policies that are found by facts of a connection rule as if all of them were tried."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state.build import ip, pod, policy
from ztunnel_py.decide.rbac import Attempt, Rulebook
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.policy import (
    Match,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel_py.state.store import PolicyRemoval, Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.state.policy import Policy
    from ztunnel_py.state.store import PolicyUpdate, Update

NAMES = ("blue", "red")
IDENTITIES = [Identity(td, ns, sa) for td in ("td", "other") for ns in NAMES for sa in NAMES]
SOURCES = [ip("10.0.0.1"), ip("10.0.0.2"), ip("::1")]
RANGES = ["10.0.0.1/32", "10.0.0.0/30", "::1/128", "0.0.0.0/0"]
PORTS = (80, 8080)
PRINCIPALS = ["td/ns/blue/sa/red", "spiffe://td/ns/blue/sa/blue", "td/", "/sa/red", ""]


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.just(()) | st.lists(values, max_size=2).map(tuple)


def strings(*values: str) -> st.SearchStrategy[tuple[StringMatch, ...]]:
    return few(st.builds(StringMatch, st.sampled_from(StringMatchKind), st.sampled_from(values)))


cidrs = few(st.sampled_from(RANGES).map(ipaddress.ip_network))
accounts = few(st.builds(ServiceAccountMatch, st.sampled_from(NAMES), st.sampled_from(NAMES)))
ports = few(st.sampled_from(PORTS))
matches = st.builds(
    Match,
    namespaces=strings(*NAMES, "b", ""),
    not_namespaces=strings(*NAMES),
    principals=strings(*PRINCIPALS),
    not_principals=strings(*PRINCIPALS),
    service_accounts=accounts,
    not_service_accounts=accounts,
    source_ips=cidrs,
    not_source_ips=cidrs,
    destination_ips=cidrs,
    destination_ports=ports,
    not_destination_ports=ports,
)
sparse = st.builds(Match, principals=strings(*PRINCIPALS)) | st.builds(
    Match, service_accounts=accounts, destination_ports=ports
)
clauses = few(st.one_of(sparse, matches, st.just(Match())))
rules = few(few(clauses))


@st.composite
def policies(draw: st.DrawFn) -> list[PolicyUpdate]:
    return [
        policy(
            f"p{number}",
            rules=draw(rules),
            action=draw(st.sampled_from(["Allow", "Deny"])),
            scope=draw(st.sampled_from(PolicyScope)),
            namespace=draw(st.sampled_from(["default", "elsewhere"])),
            is_dry_run=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 5)))
    ]


attempts = st.builds(
    Attempt.of,
    st.sampled_from(SOURCES),
    st.builds(SockAddr, st.sampled_from(SOURCES), st.sampled_from(PORTS)),
    st.none() | st.sampled_from(IDENTITIES),
)


@settings(max_examples=500, deadline=None)
@given(policies(), st.lists(attempts, min_size=1, max_size=4), st.booleans())
def test_ruling_is_that_of_a_naive_reading_of_the_rules(
    updates: list[PolicyUpdate], asked: list[Attempt], is_selected: bool
) -> None:
    store = Store()
    store.apply(updates)
    selected = tuple(update.key for update in updates) if is_selected else ()
    workload = pod("a", authorization_policies=selected).workload
    rulebook = Rulebook(store)

    rulings = [rulebook.judge(workload, attempt) for attempt in asked]

    applying = [u.policy for u in updates if applies(u.policy, is_selected)]
    assert [ruling.is_allowed for ruling in rulings] == [
        is_allowed(applying, attempt) for attempt in asked
    ]


one_kind = st.one_of(
    st.builds(Match, principals=strings(*PRINCIPALS[:1], PRINCIPALS[2])),
    st.builds(Match, service_accounts=accounts),
    st.builds(Match, namespaces=strings("blue", "re", "")),
    st.builds(Match, source_ips=cidrs, destination_ports=ports),
    st.builds(Match, destination_ports=ports, not_principals=strings(*PRINCIPALS)),
    st.builds(Match, destination_ips=cidrs),
)
telling = st.lists(
    st.lists(st.lists(one_kind, min_size=1, max_size=2).map(tuple), min_size=1, max_size=2).map(
        tuple
    ),
    min_size=1,
    max_size=2,
).map(tuple)
EVERYBODY = [
    Attempt.of(source, SockAddr(SOURCES[0], port), identity)
    for source in SOURCES
    for port in PORTS
    for identity in (None, *IDENTITIES)
]


CALLER = Attempt.of(ip("10.0.0.1"), SockAddr(ip("10.0.0.2"), 80), Identity("td", "blue", "red"))
STRANGER = Attempt.of(
    ip("10.0.0.9"), SockAddr(ip("10.0.0.2"), 81), Identity("other", "red", "blue")
)


@pytest.mark.parametrize("action", ["Allow", "Deny"])
@pytest.mark.parametrize(
    "match",
    [
        Match(principals=(StringMatch(StringMatchKind.EXACT, "td/ns/blue/sa/red"),)),
        Match(service_accounts=(ServiceAccountMatch("blue", "red"),)),
        Match(namespaces=(StringMatch(StringMatchKind.EXACT, "blue"),)),
        Match(source_ips=(ipaddress.ip_network("10.0.0.1/32"),)),
        Match(destination_ports=(80,)),
    ],
    ids=["principal", "account", "namespace", "source", "port"],
)
def test_policy_that_names_one_exact_value_is_found_by_it(match: Match, action: str) -> None:
    store = Store()
    store.apply([policy("p", match, action=action)])
    rulebook = Rulebook(store)
    workload = pod("a").workload

    rulings = [rulebook.judge(workload, attempt).is_allowed for attempt in (CALLER, STRANGER)]

    assert rulings == [action == "Allow", action == "Deny"]


@settings(max_examples=400, deadline=None)
@given(telling, st.sampled_from(["Allow", "Deny"]))
def test_one_policy_matches_exactly_whom_its_rules_name(rules: Any, action: str) -> None:
    store = Store()
    made = policy("p", rules=rules, action=action)
    store.apply([made])
    rulebook, workload = Rulebook(store), pod("a").workload

    allowed = [rulebook.judge(workload, one).is_allowed for one in EVERYBODY]

    matched = [policy_matches(made.policy, one) for one in EVERYBODY]
    assert allowed == [one is (action == "Allow") for one in matched]


@settings(max_examples=100, deadline=None)
@given(policies(), policies(), st.sets(st.integers(0, 5)), attempts)
def test_rulebook_that_followed_changes_rules_like_a_new_one(
    before: list[PolicyUpdate], after: list[PolicyUpdate], gone: set[int], attempt: Attempt
) -> None:
    store, workload = Store(), pod("a").workload
    rulebook = Rulebook(store)
    removals: list[Update] = [PolicyRemoval(f"default/p{number}") for number in gone]
    steps: list[list[Update]] = [[*before], removals, [*after], removals]

    for step in steps:
        store.apply(step)
        assert rulebook.judge(workload, attempt) == Rulebook(store).judge(workload, attempt)


# --- spec state, sections 6.3 to 6.5, word by word


def applies(one: Policy, is_selected: bool) -> bool:
    if is_selected or one.scope is PolicyScope.GLOBAL:
        return True
    return one.scope is PolicyScope.NAMESPACE and one.namespace == "default"


def is_allowed(applying: list[Policy], attempt: Attempt) -> bool:
    enforced = [one for one in applying if not one.is_dry_run]
    denies = [one for one in enforced if one.action is PolicyAction.DENY]
    allows = [one for one in enforced if one.action is PolicyAction.ALLOW]
    if any(policy_matches(one, attempt) for one in denies):
        return False
    return not allows or any(policy_matches(one, attempt) for one in allows)


def policy_matches(one: Policy, attempt: Attempt) -> bool:
    return any(all(clause_matches(clause, attempt) for clause in rule) for rule in one.rules)


def clause_matches(clause: tuple[Match, ...], attempt: Attempt) -> bool:
    return not clause or any(fires(match, attempt) for match in clause)


def fires(match: Match, a: Attempt) -> bool:
    if match == Match():
        return False
    return (
        holds(match.principals, match.not_principals, lambda one: principal_matches(one, a))
        and holds(
            match.service_accounts, match.not_service_accounts, lambda one: a.account == tuple(one)
        )
        and holds(
            match.namespaces, match.not_namespaces, lambda one: string_matches(one, a.namespace)
        )
        and holds(match.source_ips, match.not_source_ips, lambda one: a.src in one)
        and holds(match.destination_ips, match.not_destination_ips, lambda one: a.dst in one)
        and holds(match.destination_ports, match.not_destination_ports, lambda one: a.port == one)
    )


def holds(wanted: Iterable[object], unwanted: Iterable[object], test: object) -> bool:
    assert callable(test)
    wanted = tuple(wanted)
    return (not wanted or any(map(test, wanted))) and not any(map(test, unwanted))


def principal_matches(match: StringMatch, attempt: Attempt) -> bool:
    return attempt.principal is not None and string_matches(match, attempt.principal)


def string_matches(match: StringMatch, text: str) -> bool:
    match match.kind:
        case StringMatchKind.EXACT:
            return text == match.value
        case StringMatchKind.PREFIX:
            return text.startswith(match.value)
        case StringMatchKind.SUFFIX:
            return text.endswith(match.value)
        case StringMatchKind.PRESENCE:
            return text != ""
