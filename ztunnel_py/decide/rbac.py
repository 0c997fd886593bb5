# SPDX-License-Identifier: Apache-2.0
"""Authorization: may this connection reach this workload?

Policies are compiled once, when a decision first needs them: a policy is an OR of rules, a rule an
AND of clauses, a clause an OR of matches, a match an AND over kinds, and within a kind one of the
wanted values and none of the unwanted. Source: spec state, section 6.

Of many policies few can match one connection: most rules want one of some exact principals,
accounts, sources, namespaces or ports. So policies are found by these *facts* of a connection, and
only those that wait for one of its facts, or for none that can be looked up, are tried.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.decide.verdict import Note
from ztunnel_py.state.policy import Match, PolicyAction, StringMatchKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.address import Cidr, Ip, SockAddr
    from ztunnel_py.state.policy import (
        Clause,
        Policy,
        Rule,
        ServiceAccountMatch,
        StringMatch,
    )
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload

    T = TypeVar("T")
    Test = Callable[["Attempt"], bool]

_LOG_TARGET = "state"
"""Where ztunnel's operators look for the lines about policies."""

Fact = tuple[int, object]
"""A kind, and the value that a connection has."""
_Wait = tuple[int, set[Fact] | None]
"""The least telling kind among facts, and the facts."""
_PRINCIPAL, _ACCOUNT, _SOURCE, _NAMESPACE, _PORT, _NONE = range(6)
"""Kinds of facts, the most telling first."""
_SETS_MAX = 1024
_NO_TELLING: _Wait = (_NONE, None)
_EMPTY = Match()


class Attempt(NamedTuple):
    """The attributes of a connection that policies see."""

    src: Ip
    dst: Ip
    port: int
    """The application's port, never that of the tunnel."""
    principal: str | None
    """Without the scheme; None for plaintext."""
    namespace: str
    """Empty for plaintext."""
    account: tuple[str, str] | None
    """Namespace and service account; None for plaintext."""

    @classmethod
    def of(cls, src: Ip, dst: SockAddr, identity: Identity | None) -> Attempt:
        """The attributes of a connection from `src`, with the identity that it proved."""
        if identity is None:
            return cls(src, dst.ip, dst.port, None, "", None)
        account = (identity.namespace, identity.service_account)
        return cls(src, dst.ip, dst.port, identity.principal, identity.namespace, account)

    def facts(self) -> tuple[Fact, ...]:
        """What policies may be found by."""
        return (
            (_PRINCIPAL, self.principal),
            (_ACCOUNT, self.account),
            (_SOURCE, self.src),
            (_NAMESPACE, self.namespace),
            (_PORT, self.port),
        )


class Ruling(NamedTuple):
    """The outcome, with its reasons."""

    is_allowed: bool
    detail: str
    """Why it was refused, as ztunnel says it; empty if it was not."""
    text: str
    """What decided, for people."""
    notes: tuple[Note, ...] = ()


class _Compiled:
    """A policy, ready to be tried."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.key = policy.key
        """How the policy calls itself; what it is stored under may differ."""
        self.facts = _facts_of_policy(policy)
        """It matches no connection without one of these; None: no telling."""

    @functools.cached_property
    def matches(self) -> Test:
        """Most are never tried, so never compiled."""
        return compile_policy(self.policy)


class _Trials:
    """Policies in the order in which they are asked."""

    def __init__(self) -> None:
        self.all: list[_Compiled] = []
        self._anyway: list[int] = []
        self._by_fact: dict[Fact, list[int]] = {}

    def add(self, policy: _Compiled) -> None:
        number = len(self.all)
        self.all.append(policy)
        if policy.facts is None:
            self._anyway.append(number)
        for fact in policy.facts or ():
            self._by_fact.setdefault(fact, []).append(number)

    def matching(self, attempt: Attempt, facts: tuple[Fact, ...]) -> Iterator[_Compiled]:
        """Those that match `attempt`, which has these `facts`."""
        found = set(self._anyway)
        for fact in facts:
            found.update(self._by_fact.get(fact, ()))
        return (self.all[n] for n in sorted(found) if self.all[n].matches(attempt))


class _PolicySet:
    """The policies that apply to some workloads."""

    def __init__(self) -> None:
        self.deny_dry_run = _Trials()
        self.deny = _Trials()
        self.allow_dry_run = _Trials()
        self.allow = _Trials()
        self.unknown: list[str] = []


class Rulebook:
    """The compiled policies of a store; follows its changes by itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = store.policies_version
        self._compiled: dict[str, _Compiled] = {}
        self._sets: dict[tuple[str, tuple[str, ...]], _PolicySet] = {}

    def judge(self, workload: Workload, attempt: Attempt, log_level: str = "debug") -> Ruling:
        """Whether `attempt` may reach `workload`. Cost: linear in policies that it may match."""
        return _Judgement(log_level).of(self._set_for(workload), attempt)

    def _set_for(self, workload: Workload) -> _PolicySet:
        if self._version != self._store.policies_version:
            self._version = self._store.policies_version
            self._sets.clear()
            current = self._store.policies()
            self._compiled = {
                key: c for key, c in self._compiled.items() if current.get(key) is c.policy
            }
        key = (workload.namespace, workload.authorization_policies)
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= _SETS_MAX:
                self._sets.clear()
            found = self._sets[key] = self._gather(*key)
        return found

    def _gather(self, namespace: str, selected: tuple[str, ...]) -> _PolicySet:
        result = _PolicySet()
        known = self._store.policies()
        keys = dict.fromkeys(
            (
                *self._store.policies_of_namespace(namespace),
                *self._store.policies_of_namespace(""),
                *selected,
            )
        )
        for key in keys:
            if (policy := known.get(key)) is None:
                result.unknown.append(key)
                continue
            compiled = self._compiled.get(key)
            if compiled is None:
                compiled = self._compiled[key] = _Compiled(policy)
            _trials_for(result, policy).add(compiled)
        return result


def _trials_for(policies: _PolicySet, policy: Policy) -> _Trials:
    if policy.action is PolicyAction.DENY:
        return policies.deny_dry_run if policy.is_dry_run else policies.deny
    return policies.allow_dry_run if policy.is_dry_run else policies.allow


class _Judgement:
    """One pass over a set of policies, and the lines that it leaves."""

    def __init__(self, log_level: str) -> None:
        self._level = log_level
        self._notes: list[Note] = []

    def of(self, policies: _PolicySet, attempt: Attempt) -> Ruling:
        for key in policies.unknown:
            self._notes.append(Note(_LOG_TARGET, "warn", f"skipping unknown policy {key}", {}))
        facts = attempt.facts()
        for trial in policies.deny_dry_run.matching(attempt, facts):
            self._note("dry-run: deny policy match", trial)
        for policy in policies.deny.matching(attempt, facts):
            self._note("deny policy match", policy)
            return self._denied(f"explicitly denied by: {policy.key}", policy.key)
        self._try_allows(policies, attempt, facts)
        if not policies.allow.all:
            self._note("no allow policies, allow")
            return self._allowed("no allow policies apply")
        for policy in policies.allow.matching(attempt, facts):
            self._note("allow policy match", policy)
            return self._allowed(f"allowed by {policy.key}")
        self._note("no allow policies matched")
        names = ", ".join(policy.key for policy in policies.allow.all[:3])
        return self._denied("allow policies exist, but none allowed", f"none of {names} allows it")

    def _try_allows(self, policies: _PolicySet, attempt: Attempt, facts: tuple[Fact, ...]) -> None:
        """Say what dry-run ALLOW policies would do; they change nothing."""
        trials = policies.allow_dry_run
        matched = list(trials.matching(attempt, facts))
        for trial in matched:
            self._note("dry-run: allow policy match", trial)
        if trials.all and not matched and not policies.allow.all:
            self._note("dry-run: no allow policies match")

    def _note(self, message: str, policy: _Compiled | None = None) -> None:
        fields = {} if policy is None else {"policy": policy.key}
        self._notes.append(Note(_LOG_TARGET, self._level, message, fields))

    def _allowed(self, text: str) -> Ruling:
        return Ruling(True, "", text, tuple(self._notes))

    def _denied(self, detail: str, by: str) -> Ruling:
        return Ruling(False, detail, f"denied: {by}", tuple(self._notes))


# --- the facts that a policy waits for, from the outside in


def _facts_of_policy(policy: Policy) -> frozenset[Fact] | None:
    """A policy matches by one of its rules, so it waits for what any of them waits for."""
    found: set[Fact] = set()
    for rule in policy.rules:
        _, facts = _facts_of_rule(rule)
        if facts is None:
            return None
        found |= facts
    return frozenset(found)


def _facts_of_rule(rule: Rule) -> _Wait:
    """All clauses must hold, so waiting for the most telling of them is enough."""
    return min(map(_facts_of_clause, rule), key=operator.itemgetter(0), default=_NO_TELLING)


def _facts_of_clause(clause: Clause) -> _Wait:
    """One match must fire, so all of them must tell; those without any field never fire."""
    if not clause:
        return _NO_TELLING
    waits = [_facts_of_match(match) for match in clause if match != _EMPTY]
    found: set[Fact] = set()
    for _, facts in waits:
        if facts is None:
            return _NO_TELLING
        found |= facts
    return max((kind for kind, _ in waits), default=_PRINCIPAL), found


def _facts_of_match(match: Match) -> _Wait:
    """All kinds must hold: the most telling one that wants nothing but exact values."""
    if match.principals and all(map(_is_exact, match.principals)):
        return _PRINCIPAL, {(_PRINCIPAL, one.value) for one in match.principals}
    if match.service_accounts:
        return _ACCOUNT, {(_ACCOUNT, tuple(one)) for one in match.service_accounts}
    if match.source_ips and all(one.prefixlen == one.max_prefixlen for one in match.source_ips):
        return _SOURCE, {(_SOURCE, one.network_address) for one in match.source_ips}
    if match.namespaces and all(map(_is_exact, match.namespaces)):
        return _NAMESPACE, {(_NAMESPACE, one.value) for one in match.namespaces}
    if match.destination_ports:
        return _PORT, {(_PORT, one) for one in match.destination_ports}
    return _NO_TELLING


def _is_exact(match: StringMatch) -> bool:
    return match.kind is StringMatchKind.EXACT


# --- compilation, from the outside in


def compile_policy(policy: Policy) -> Test:
    """A test of whether `policy` matches; never true without rules."""
    return _any([_compile_rule(rule) for rule in policy.rules])


def _compile_rule(rule: Rule) -> Test:
    return _all([_compile_clause(clause) for clause in rule])


def _compile_clause(clause: Clause) -> Test:
    """An empty clause holds; one that has only matches without fields never does."""
    if not clause:
        return _all([])
    return _any([_all(tests) for match in clause if (tests := _compile_match(match))])


def _compile_match(match: Match) -> list[Test]:
    """One test per list that has values; none if the match has no field at all."""
    return [
        *_kind(_ports, match.destination_ports, match.not_destination_ports),
        *_kind(_sources, match.source_ips, match.not_source_ips),
        *_kind(_destinations, match.destination_ips, match.not_destination_ips),
        *_kind(_accounts, match.service_accounts, match.not_service_accounts),
        *_kind(_principals, match.principals, match.not_principals),
        *_kind(_namespaces, match.namespaces, match.not_namespaces),
    ]


def _kind(
    compile_values: Callable[[tuple[T, ...]], Test],
    wanted: tuple[T, ...],
    unwanted: tuple[T, ...],
) -> list[Test]:
    tests = [compile_values(wanted)] if wanted else []
    if unwanted:
        is_unwanted = compile_values(unwanted)
        tests.append(lambda attempt: not is_unwanted(attempt))
    return tests


def _ports(values: tuple[int, ...]) -> Test:
    ports = frozenset(values)
    return lambda attempt: attempt.port in ports


def _sources(values: tuple[Cidr, ...]) -> Test:
    contains = _ranges(values)
    return lambda attempt: contains(attempt.src)


def _destinations(values: tuple[Cidr, ...]) -> Test:
    contains = _ranges(values)
    return lambda attempt: contains(attempt.dst)


def _accounts(values: tuple[ServiceAccountMatch, ...]) -> Test:
    accounts = frozenset(values)
    return lambda attempt: attempt.account in accounts


def _principals(values: tuple[StringMatch, ...]) -> Test:
    """Without an identity none fires, not even presence; so a negated list holds."""
    fires = _strings(values)
    return lambda attempt: attempt.principal is not None and fires(attempt.principal)


def _namespaces(values: tuple[StringMatch, ...]) -> Test:
    fires = _strings(values)
    return lambda attempt: fires(attempt.namespace)


def _strings(matches: tuple[StringMatch, ...]) -> Callable[[str], bool]:
    def values(kind: StringMatchKind) -> tuple[str, ...]:
        return tuple(m.value for m in matches if m.kind is kind)

    exact = frozenset(values(StringMatchKind.EXACT))
    prefixes = values(StringMatchKind.PREFIX)
    suffixes = values(StringMatchKind.SUFFIX)
    is_presence_enough = any(m.kind is StringMatchKind.PRESENCE for m in matches)

    def fires(text: str) -> bool:
        return (
            text in exact
            or text.startswith(prefixes)
            or text.endswith(suffixes)
            or (is_presence_enough and text != "")
        )

    return fires


def _ranges(cidrs: tuple[Cidr, ...]) -> Callable[[Ip], bool]:
    """Compared as integers: ten times faster than `ip in cidr`. Families never cross."""
    bits = [(c.version, int(c.network_address), int(c.netmask)) for c in cidrs]

    def contains(ip: Ip) -> bool:
        number, version = int(ip), ip.version
        return any(number & mask == base and version == v for v, base, mask in bits)

    return contains


def _all(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    fixed = tuple(tests)
    return lambda attempt: all(test(attempt) for test in fixed)


def _any(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    fixed = tuple(tests)
    return lambda attempt: any(test(attempt) for test in fixed)
