# SPDX-License-Identifier: Apache-2.0
"""The steps on the destination's node: is the authority its own, and what do policies say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide import names, near_miss
from ztunnel_py.decide.journey import Kind, Outcome
from ztunnel_py.decide.key import InboundKey
from ztunnel_py.decide.remedy_policy import attempt_of
from ztunnel_py.decide.step import Finding, Mark, Step, finding
from ztunnel_py.errors import Reason
from ztunnel_py.state.policy import PolicyAction, StringMatchKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.decide.journey import Arrival, Journey
    from ztunnel_py.decide.near_miss import Applying
    from ztunnel_py.decide.rbac import Attempt
    from ztunnel_py.state.policy import Policy
    from ztunnel_py.state.store import Store


def steps(store: Store, journey: Journey) -> Iterator[Step]:
    """At the workload where the connection fares worst; empty if it comes nowhere."""
    arrival = journey.decisive
    if arrival.outcome is Outcome.ENCRYPTED:
        arrival = next((one for one in journey.arrivals if one.verdict is not None), arrival)
    workload, verdict = arrival.workload, arrival.verdict
    if workload is None:
        return
    if verdict is None:
        if arrival.outcome is not Outcome.PLAIN:
            is_refused = arrival.outcome is Outcome.REFUSED
            yield Step("arrival", _unjudged(arrival, is_refused), is_refused)
        return
    is_refused = arrival.outcome is Outcome.REFUSED
    yield Step("arrival", _arrival(arrival, is_refused), is_refused)
    attempt = attempt_of(arrival)
    if attempt is None:
        return
    is_denied = verdict.reason is Reason.POLICY_DENIED
    applying = near_miss.applying(store, workload)
    said = tuple(_finding(one, attempt, is_denied) for one in applying)
    yield Step("policies", verdict.policy, is_denied, said)


def _unjudged(arrival: Arrival, is_refused: bool) -> str:
    """Where no decision of a proxy is asked for."""
    assert arrival.workload is not None
    name = names.shown(arrival.workload)
    if is_refused and arrival.kind is Kind.GATEWAY:
        return "behind the gateway no identity is accepted: the service has no subjectAltNames"
    if is_refused:
        who = arrival.workload.identity
        return f"{name} proves {who}, which the subjectAltNames of the service do not name"
    if arrival.kind is Kind.GATEWAY:
        return f"{name} passes the inner tunnel on: the other network decides"
    if arrival.address is None:
        return f"{name} is wherever DNS says: what is there decides"
    return f"{name} ends the tunnel itself: from there on it decides"


def _arrival(arrival: Arrival, is_refused: bool) -> str:
    assert arrival.workload is not None
    name, key = names.shown(arrival.workload), arrival.key
    if is_refused:
        return arrival.reason
    if not isinstance(key, InboundKey):
        return f"plain TCP reaches {name} at {arrival.address}"
    if arrival.kind is Kind.WAYPOINT:
        return f"{name} accepts {key.authority} as its waypoint"
    where = f"{key.authority} as its own"
    return f"{name} accepts {where}, from {key.identity}"


def _finding(one: Applying, attempt: Attempt, is_denied: bool) -> Finding:
    policy = one.policy
    if policy is None:
        return Finding(Mark.NOTE, f"{one.key}: nobody knows this policy, it is skipped")
    near = near_miss.nearest(policy, attempt)
    is_matched = near is not None and not near.unmet
    name = f"{policy.key} ({_called(policy, attempt)})"
    if near is None:
        said = "has no rules and never matches"
    elif is_matched:
        said = f"matches, rule {near.rule + 1}"
    else:
        said = f"does not match: {near.text}"
    if policy.is_dry_run:
        return Finding(Mark.NOTE, f"{name} {said}; it changes nothing")
    if policy.action is PolicyAction.DENY:
        return finding(not is_matched, f"{name} {said}")
    if is_matched:
        return finding(True, f"{name} {said}")
    return Finding(Mark.BAD if is_denied else Mark.NOTE, f"{name} {said}")


def _called(policy: Policy, attempt: Attempt) -> str:
    word = policy.action.value.upper()
    if policy.is_dry_run:
        return f"{word}, dry-run"
    if policy.action is PolicyAction.DENY and attempt.principal is None and _wants_tls(policy):
        return f"{word}, strict mTLS"
    return word


def _wants_tls(policy: Policy) -> bool:
    """Whether it denies whoever proves nothing, which is how strict mTLS is written."""
    return any(
        unwanted.kind is StringMatchKind.PRESENCE
        for rule in policy.rules
        for clause in rule
        for match in clause
        for unwanted in match.not_principals
    )
