# SPDX-License-Identifier: Apache-2.0
"""What to change in policies so that they let one connection in, and nothing else if possible."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from ztunnel_py.decide import change, near_miss
from ztunnel_py.decide.change import Edit
from ztunnel_py.decide.key import InboundKey, PassthroughKey
from ztunnel_py.decide.rbac import Attempt
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.policy import (
    Match,
    PolicyAction,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeVar

    from ztunnel_py.decide.change import Change
    from ztunnel_py.decide.journey import Arrival
    from ztunnel_py.decide.near_miss import Field, Miss, Unmet
    from ztunnel_py.state.policy import Clause, Policy, Rule
    from ztunnel_py.state.store import Store

    T = TypeVar("T")


def attempt_of(arrival: Arrival) -> Attempt | None:
    """What policies see of a connection; None where none are asked.

    The port is the one that the proxy resolved, which it dials.
    """
    key, verdict = arrival.key, arrival.verdict
    match key:
        case PassthroughKey():
            return Attempt.of(key.src, key.dst, None)
        case InboundKey() if verdict is not None and verdict.hops:
            address = SockAddr(key.local, verdict.hops[0].address.port)
            return Attempt.of(key.src, address, key.identity)
    return None


def of_denial(store: Store, arrival: Arrival) -> Iterator[Change]:
    """Changes after which one of the policies that deny `arrival` does not any more."""
    attempt, workload = attempt_of(arrival), arrival.workload
    assert workload is not None
    if attempt is None or attempt.principal is None:
        return
    policies = [
        (key, policy)
        for key, policy in near_miss.applying(store, workload)
        if policy is not None and not policy.is_dry_run
    ]
    denying = [
        (key, policy)
        for key, policy in policies
        if policy.action is PolicyAction.DENY and near_miss.holding(policy, attempt)
    ]
    for key, policy in denying[:1]:
        yield _excluded(key, policy, attempt)
        yield change.drop_policy(key, policy)
    if denying:
        return
    allowing = [(key, p) for key, p in policies if p.action is PolicyAction.ALLOW]
    for key, policy in sorted(allowing, key=lambda one: _cost(one[1], attempt)):
        yield _admitted(key, policy, attempt)


def _cost(policy: Policy, attempt: Attempt) -> tuple[bool, int, int]:
    near = near_miss.nearest(policy, attempt)
    return (True, 0, 0) if near is None else (False, near.cost, near.breadth)


# --- DENY


def _excluded(key: str, policy: Policy, attempt: Attempt) -> Change:
    """`policy`, which does not match the client any more: in each rule one clause less holds."""
    unwanted = _exactly(attempt.principal)
    rules, edits = list(policy.rules), []
    for i in near_miss.holding(policy, attempt):
        rule = rules[i]
        firing = [near_miss.firing(clause, attempt) for clause in rule]
        single = next((c for c, matches in enumerate(firing) if len(matches) == 1), None)
        if single is None:
            match = Match(not_principals=(unwanted,))
            edits.append(Edit("add", ("rules", i), [{"notPrincipals": [_plain(unwanted)]}]))
            rules[i] = (*rule, (match,))
            continue
        at = firing[single][0]
        match = rule[single][at]
        path = ("rules", i, single, at, "notPrincipals")
        edits.append(_listed(path, match.not_principals, unwanted))
        new = dataclasses.replace(match, not_principals=(*match.not_principals, unwanted))
        rules[i] = _with_match(rule, single, at, new)
    words = f"except {attempt.principal} from DENY policy {policy.key}"
    return change.of_policy(key, policy, words, tuple(edits), tuple(rules))


# --- ALLOW


def _admitted(key: str, policy: Policy, attempt: Attempt) -> Change:
    """`policy`, which matches the client: its nearest rule widened, or a rule of its own."""
    near = near_miss.nearest(policy, attempt)
    if near is None or near.cost > 1:
        return _ruled(key, policy, attempt)
    (unmet,) = near.unmet
    if not unmet.misses:
        return _joined(key, policy, near.rule, unmet.clause, attempt)
    (miss,) = unmet.misses
    if not miss.is_unwanted:
        return _widened(key, policy, near.rule, unmet, miss.field, attempt)
    match = policy.rules[near.rule][unmet.clause][unmet.match]
    kept = _without(match, miss)
    if kept == Match():
        return _joined(key, policy, near.rule, unmet.clause, attempt)
    path = ("rules", near.rule, unmet.clause, unmet.match, miss.field.not_key)
    edits = tuple(Edit("remove", (*path, i)) for i in reversed(miss.culprits))
    words = f"stop excluding {miss.field.word} {miss.field.was(attempt)} in {policy.key}"
    rules = _with_rule(policy, near.rule, unmet, kept)
    return change.of_policy(key, policy, words + _where(near.rule, unmet.clause), edits, rules)


def _ruled(key: str, policy: Policy, attempt: Attempt) -> Change:
    principal, port = _exactly(attempt.principal), attempt.port
    rule = ((Match(principals=(principal,)),), (Match(destination_ports=(port,)),))
    plain = [[{"principals": [_plain(principal)]}], [{"destinationPorts": [port]}]]
    words = f"add a rule for {attempt.principal} on port {port} to {policy.key}"
    edit = Edit("add", ("rules",), plain)
    return change.of_policy(key, policy, words, (edit,), (*policy.rules, rule))


def _joined(key: str, policy: Policy, rule: int, clause: int, attempt: Attempt) -> Change:
    """With one more match in a clause, where the others cannot be widened."""
    principal = _exactly(attempt.principal)
    edit = Edit("add", ("rules", rule, clause), {"principals": [_plain(principal)]})
    matches = (*policy.rules[rule][clause], Match(principals=(principal,)))
    clauses = _replaced(policy.rules[rule], clause, matches)
    rules = _replaced(policy.rules, rule, clauses)
    words = f"add a match for {attempt.principal} to {policy.key}{_where(rule, clause)}"
    return change.of_policy(key, policy, words, (edit,), rules)


def _widened(
    key: str, policy: Policy, rule: int, unmet: Unmet, field: Field, attempt: Attempt
) -> Change:
    value = _granted(field.name, attempt)
    match = policy.rules[rule][unmet.clause][unmet.match]
    wanted: tuple[object, ...] = getattr(match, field.name)
    new = dataclasses.replace(match, **{field.name: (*wanted, value)})  # type: ignore[arg-type]
    edit = Edit("add", ("rules", rule, unmet.clause, unmet.match, field.key), _plain(value))
    words = f"add {field.word} {field.was(attempt)} to {policy.key}{_where(rule, unmet.clause)}"
    return change.of_policy(key, policy, words, (edit,), _with_rule(policy, rule, unmet, new))


def _granted(field: str, attempt: Attempt) -> object:
    """The value that lets exactly this connection in, as far as the field goes."""
    match field:
        case "principals":
            return _exactly(attempt.principal)
        case "namespaces":
            return _exactly(attempt.namespace)
        case "service_accounts":
            return ServiceAccountMatch(*(attempt.account or ("", "")))
        case "source_ips":
            return ipaddress.ip_network(attempt.src)
        case "destination_ips":
            return ipaddress.ip_network(attempt.dst)
    return attempt.port


# --- pieces


def _exactly(text: str | None) -> StringMatch:
    assert text is not None  # only connections with an identity are let in
    return StringMatch(StringMatchKind.EXACT, text)


def _where(rule: int, clause: int) -> str:
    return f", rule {rule + 1}, clause {clause + 1}"


def _plain(value: object) -> object:
    """A wanted value as the tree has it."""
    match value:
        case StringMatch(kind, text):
            return {kind.value: text}
        case ServiceAccountMatch(namespace, account):
            return {"namespace": namespace, "serviceAccount": account}
        case int():
            return value
    return str(value)


def _listed(path: change.Path, present: tuple[object, ...], value: object) -> Edit:
    """Add to a list, which is made if it is not there."""
    if present:
        return Edit("add", path, _plain(value))
    return Edit("set", path, [_plain(value)])


def _without(match: Match, miss: Miss) -> Match:
    name = f"not_{miss.field.name}"
    values: tuple[object, ...] = getattr(match, name)
    kept = tuple(one for i, one in enumerate(values) if i not in miss.culprits)
    return dataclasses.replace(match, **{name: kept})  # type: ignore[arg-type]


def _with_rule(policy: Policy, rule: int, unmet: Unmet, match: Match) -> tuple[Rule, ...]:
    new = _with_match(policy.rules[rule], unmet.clause, unmet.match, match)
    return _replaced(policy.rules, rule, new)


def _with_match(rule: Rule, clause: int, at: int, match: Match) -> Rule:
    matches: Clause = _replaced(rule[clause], at, match)
    return _replaced(rule, clause, matches)


def _replaced(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])
