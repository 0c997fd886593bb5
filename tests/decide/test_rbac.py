# SPDX-License-Identifier: Apache-2.0
"""Authorization: the truth tables of spec state, section 6."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest

from tests.state.build import PRESENCE, exact, ip, pod, policy
from ztunnel_py.decide.rbac import Attempt, Rulebook
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.policy import (
    Match,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel_py.state.store import PolicyUpdate, Store

if TYPE_CHECKING:
    from ztunnel_py.decide.rbac import Ruling
    from ztunnel_py.state.policy import (
        Policy,
    )

BLUE = Identity("corp", "blue", "web")
RED = Identity("other", "red", "job")
PLAIN = Attempt.of(ip("10.0.0.1"), SockAddr.parse("10.0.1.1:7000"), None)
MUTUAL = Attempt.of(ip("10.0.0.1"), SockAddr.parse("10.0.1.1:7000"), BLUE)
OTHER = Attempt.of(ip("10.0.0.9"), SockAddr.parse("10.0.1.9:7001"), RED)
EMPTY = Match()
ANY_PRINCIPAL = Match(principals=PRESENCE)
NO_PRINCIPAL = Match(not_principals=PRESENCE)


def judge(attempt: Attempt, *policies: PolicyUpdate, selected: tuple[str, ...] = ()) -> Ruling:
    store = Store()
    store.apply(policies)
    workload = pod("a", authorization_policies=selected).workload
    return Rulebook(store).judge(workload, attempt)


def matches(attempt: Attempt, match: Match) -> bool:
    """Whether a policy of this one match fires: as DENY it then refuses."""
    return not judge(attempt, policy("p", match, action="Deny")).is_allowed


def prefix(text: str) -> tuple[StringMatch, ...]:
    return (StringMatch(StringMatchKind.PREFIX, text),)


def suffix(text: str) -> tuple[StringMatch, ...]:
    return (StringMatch(StringMatchKind.SUFFIX, text),)


def cidr(text: str) -> tuple[Any, ...]:
    return (ipaddress.ip_network(text, strict=False),)


ACCOUNT = (ServiceAccountMatch("blue", "web"),)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(namespaces=exact("blue")), (False, True, False)),
        (Match(not_namespaces=exact("blue")), (True, False, True)),
        (Match(namespaces=PRESENCE), (False, True, True)),
        (Match(service_accounts=ACCOUNT), (False, True, False)),
        (Match(not_service_accounts=ACCOUNT), (True, False, True)),
        (Match(principals=exact("corp/ns/blue/sa/web")), (False, True, False)),
        (Match(principals=prefix("corp/")), (False, True, False)),
        (Match(principals=suffix("/sa/job")), (False, False, True)),
        (Match(principals=PRESENCE), (False, True, True)),
        (Match(not_principals=exact("corp/ns/blue/sa/web")), (True, False, True)),
        (Match(not_principals=PRESENCE), (True, False, False)),
        (Match(source_ips=cidr("10.0.0.1/32")), (True, True, False)),
        (Match(not_source_ips=cidr("10.0.0.1/32")), (False, False, True)),
        (Match(destination_ips=cidr("10.0.1.1/32")), (True, True, False)),
        (Match(not_destination_ips=cidr("10.0.1.1/32")), (False, False, True)),
        (Match(destination_ips=cidr("10.0.1.77/24")), (True, True, True)),
        (Match(destination_ips=cidr("::/0")), (False, False, False)),
        (Match(destination_ports=(7000,)), (True, True, False)),
        (Match(not_destination_ports=(7000,)), (False, False, True)),
        (
            Match(namespaces=exact("blue"), not_destination_ports=(7000,)),
            (False, False, False),
        ),
        (Match(namespaces=exact("red") + exact("blue")), (False, True, True)),
    ],
)
def test_truth_table_of_single_kinds(match: Match, expected: tuple[bool, bool, bool]) -> None:
    assert tuple(matches(a, match) for a in (PLAIN, MUTUAL, OTHER)) == expected


@pytest.mark.parametrize(
    ("strings", "text", "expected"),
    [
        (prefix("foo"), "foobar", True),
        (prefix("foo"), "notfoo", False),
        (prefix("foo"), "", False),
        (suffix("foo"), "barfoo", True),
        (suffix("foo"), "foonot", False),
        (PRESENCE, "x", True),
        (PRESENCE, "", False),
        (exact("foo"), "Foo", False),
    ],
)
def test_string_matches(strings: tuple[StringMatch, ...], text: str, expected: bool) -> None:
    attempt = Attempt.of(ip("10.0.0.1"), PLAIN_DST, Identity("td", text, "sa"))

    assert matches(attempt, Match(namespaces=strings)) is expected


PLAIN_DST = SockAddr.parse("10.0.1.1:7000")


@pytest.mark.spec("state-84")
def test_without_policies_every_connection_is_accepted() -> None:
    rulings = [judge(attempt) for attempt in (PLAIN, MUTUAL, OTHER)]

    assert all(ruling.is_allowed for ruling in rulings)


@pytest.mark.spec("state-85")
@pytest.mark.parametrize(("action", "allowed"), [("Allow", False), ("Deny", True)])
def test_policy_without_rules_matches_nothing(action: str, allowed: bool) -> None:
    assert judge(MUTUAL, policy("p", action=action)).is_allowed is allowed


@pytest.mark.spec("state-86")
@pytest.mark.parametrize("rules", [((),), (((),),)], ids=["empty rule", "empty clause"])
def test_empty_rule_or_clause_matches_everything(rules: Any) -> None:
    assert judge(PLAIN, policy("p", rules=rules)).is_allowed
    assert not judge(PLAIN, policy("p", rules=rules, action="Deny")).is_allowed


@pytest.mark.spec("state-87")
@pytest.mark.parametrize(
    "clause", [(EMPTY,), (EMPTY, EMPTY), (EMPTY, Match(not_destination_ports=(7000,)))]
)
def test_match_without_fields_never_fires(clause: tuple[Match, ...]) -> None:
    assert judge(PLAIN, policy("p", rules=((clause,),), action="Deny")).is_allowed
    assert not judge(PLAIN, policy("p", rules=((clause,),))).is_allowed


@pytest.mark.spec("state-88")
def test_deny_goes_before_allow_and_is_named() -> None:
    ruling = judge(MUTUAL, policy("a", ANY_PRINCIPAL), policy("d", ANY_PRINCIPAL, action="Deny"))

    assert (ruling.is_allowed, ruling.detail) == (False, "explicitly denied by: default/d")
    assert ruling.text == "denied: default/d"


def test_allow_that_does_not_match_refuses() -> None:
    ruling = judge(PLAIN, policy("a", ANY_PRINCIPAL))

    assert ruling.detail == "allow policies exist, but none allowed"
    assert ruling.text == "denied: none of default/a allows it"


@pytest.mark.spec("state-89")
def test_dry_run_policies_only_leave_lines() -> None:
    ruling = judge(
        MUTUAL,
        policy("d", ANY_PRINCIPAL, action="Deny", is_dry_run=True),
        policy("a", ANY_PRINCIPAL, is_dry_run=True),
        policy("n", NO_PRINCIPAL, is_dry_run=True),
    )

    assert ruling.is_allowed
    assert [(n.level, n.message, n.fields.get("policy")) for n in ruling.notes] == [
        ("debug", "dry-run: deny policy match", "default/d"),
        ("debug", "dry-run: allow policy match", "default/a"),
        ("debug", "no allow policies, allow", None),
    ]


def test_dry_run_allow_that_would_refuse_says_so() -> None:
    ruling = judge(PLAIN, policy("a", ANY_PRINCIPAL, is_dry_run=True))

    assert ruling.is_allowed
    assert [note.message for note in ruling.notes] == [
        "dry-run: no allow policies match",
        "no allow policies, allow",
    ]


@pytest.mark.spec("state-90")
def test_dry_run_allow_does_not_save_from_an_enforced_one() -> None:
    ruling = judge(MUTUAL, policy("e", NO_PRINCIPAL), policy("a", ANY_PRINCIPAL, is_dry_run=True))

    assert not ruling.is_allowed


STRICT = policy("p", NO_PRINCIPAL, action="Deny", scope=PolicyScope.WORKLOAD_SELECTOR)


@pytest.mark.spec("state-91")
def test_strict_policy_refuses_plaintext_and_accepts_any_identity() -> None:
    assert [
        judge(a, STRICT, selected=("default/p",)).is_allowed for a in (PLAIN, MUTUAL, OTHER)
    ] == [False, True, True]


@pytest.mark.spec("state-92")
def test_selector_policy_applies_only_where_it_is_listed() -> None:
    assert judge(PLAIN, STRICT).is_allowed


@pytest.mark.spec("state-93")
@pytest.mark.parametrize(("port", "allowed"), [(9090, True), (8080, False)])
def test_strict_with_a_permissive_port(port: int, allowed: bool) -> None:
    rules = (((NO_PRINCIPAL,), (Match(not_destination_ports=(9090,)),)),)
    attempt = Attempt.of(ip("10.0.0.1"), SockAddr(ip("10.0.1.1"), port), None)

    assert judge(attempt, policy("p", rules=rules, action="Deny")).is_allowed is allowed


@pytest.mark.spec("state-94")
@pytest.mark.parametrize(("scheme", "expected"), [("", True), ("spiffe://", False)])
def test_principals_are_written_without_the_scheme(scheme: str, expected: bool) -> None:
    assert matches(MUTUAL, Match(principals=exact(f"{scheme}corp/ns/blue/sa/web"))) is expected


@pytest.mark.spec("state-95")
@pytest.mark.parametrize("trust_domain", ["corp", "elsewhere"])
def test_service_accounts_match_in_any_trust_domain(trust_domain: str) -> None:
    attempt = Attempt.of(ip("10.0.0.1"), PLAIN_DST, Identity(trust_domain, "blue", "web"))

    assert matches(attempt, Match(service_accounts=ACCOUNT))


@pytest.mark.spec("state-97")
def test_policy_that_becomes_selector_scoped_leaves_its_namespace() -> None:
    store = Store()
    store.apply([policy("p", ANY_PRINCIPAL)])
    rulebook = Rulebook(store)
    workload = pod("a").workload
    assert not rulebook.judge(workload, PLAIN).is_allowed

    store.apply([policy("p", ANY_PRINCIPAL, scope=PolicyScope.WORKLOAD_SELECTOR)])

    assert rulebook.judge(workload, PLAIN).is_allowed


def test_global_policy_applies_in_every_namespace() -> None:
    scope = PolicyScope.GLOBAL

    assert not judge(PLAIN, policy("p", namespace="root", scope=scope)).is_allowed


@pytest.mark.spec("state-99")
def test_unknown_policy_is_skipped_with_a_warning() -> None:
    ruling = judge(PLAIN, selected=("default/absent",))

    assert ruling.is_allowed
    assert ("warn", "skipping unknown policy default/absent") in [n[1:3] for n in ruling.notes]


def test_changed_policy_is_compiled_anew_and_others_are_not() -> None:
    store = Store()
    store.apply([policy("p", ANY_PRINCIPAL), policy("q", NO_PRINCIPAL)])
    rulebook = Rulebook(store)
    workload = pod("a").workload
    rulebook.judge(workload, PLAIN)
    before = dict(rulebook._compiled)

    store.apply([policy("p", NO_PRINCIPAL)])
    rulebook.judge(workload, PLAIN)

    after = rulebook._compiled
    assert after["default/q"] is before["default/q"]
    assert after["default/p"] is not before["default/p"]


def test_policy_stored_under_another_name_is_applied_and_named_by_itself() -> None:
    made: Policy = policy("p", ANY_PRINCIPAL, action="Deny").policy

    ruling = judge(MUTUAL, PolicyUpdate("resource", made))

    assert ruling.detail == "explicitly denied by: default/p"


def test_policies_that_wait_for_another_client_are_not_even_compiled() -> None:
    store = Store()
    other = Match(principals=exact("td/ns/other/sa/other"))
    store.apply([policy("other", other), policy("mine", ANY_PRINCIPAL)])
    rulebook = Rulebook(store)

    ruling = rulebook.judge(pod("a").workload, MUTUAL)

    assert ruling.is_allowed
    compiled = {key for key, one in rulebook._compiled.items() if "matches" in vars(one)}
    assert compiled == {"default/mine"}
