# SPDX-License-Identifier: Apache-2.0
"""A near miss: why a policy does not match a connection, and how little is missing.

Every test is made by `rbac.compile_policy`, of a policy that has nothing but that test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ztunnel_py.decide.rbac import compile_policy
from ztunnel_py.state.policy import (
    Match,
    Policy,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.decide.rbac import Attempt
    from ztunnel_py.state.policy import Clause, Rule
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload


class Field(NamedTuple):
    """One kind of attribute that a match tests."""

    name: str
    """Of the field of `Match`; the unwanted values are in `not_<name>`."""
    key: str
    """Of the local state file."""
    word: str
    """For people, of one value."""
    seen: str
    """The attribute of `Attempt`."""

    @property
    def not_key(self) -> str:
        """The key of the unwanted values."""
        return f"not{self.key[0].upper()}{self.key[1:]}"

    def was(self, attempt: Attempt) -> str:
        """What the connection has, for people."""
        value = getattr(attempt, self.seen)
        if isinstance(value, tuple):
            return "/".join(value)
        return str(value) if value not in (None, "") else "no identity"


FIELDS = (
    Field("principals", "principals", "principal", "principal"),
    Field("service_accounts", "serviceAccounts", "service account", "account"),
    Field("source_ips", "sourceIps", "source address", "src"),
    Field("destination_ports", "destinationPorts", "port", "port"),
    Field("destination_ips", "destinationIps", "destination address", "dst"),
    Field("namespaces", "namespaces", "namespace", "namespace"),
)
"""The kinds: to let one more value in lets in the fewer the further up its kind is."""


class Miss(NamedTuple):
    """One field of a match that keeps it from firing."""

    field: Field
    is_unwanted: bool
    """The connection has a value that is excluded; else it lacks every wanted one."""
    culprits: tuple[int, ...]
    """Where in the list the values are that exclude it."""
    text: str
    """For people: what was wanted and what there was."""


class Unmet(NamedTuple):
    """A clause that does not hold, and the match in it that comes nearest to firing."""

    clause: int
    match: int
    misses: tuple[Miss, ...]
    """Empty for a match without any field, which never fires."""

    @property
    def cost(self) -> int:
        """How many fields would have to be different."""
        return max(1, len(self.misses))

    @property
    def breadth(self) -> int:
        """How much more than this connection would be let in: for choosing among equals."""
        return sum(FIELDS.index(miss.field) for miss in self.misses)

    @property
    def text(self) -> str:
        """For people."""
        said = " and ".join(miss.text for miss in self.misses)
        return f"clause {self.clause + 1}: {said or 'a match without any field never fires'}"


class Near(NamedTuple):
    """The rule of a policy that comes nearest to holding; without unmet clauses it holds."""

    rule: int
    unmet: tuple[Unmet, ...]

    @property
    def cost(self) -> int:
        """How many fields would have to be different."""
        return sum(one.cost for one in self.unmet)

    @property
    def breadth(self) -> int:
        """See `Unmet.breadth`."""
        return sum(one.breadth for one in self.unmet)

    @property
    def text(self) -> str:
        """For people."""
        return f"rule {self.rule + 1}, " + "; ".join(one.text for one in self.unmet)


class Applying(NamedTuple):
    """A policy that applies to a workload."""

    key: str
    """What it is stored under."""
    policy: Policy | None
    """None if a workload names one that nobody knows."""


def applying(store: Store, workload: Workload) -> list[Applying]:
    """The policies of `workload`: of its namespace, of the mesh, and those that it names."""
    keys = dict.fromkeys(
        (
            *store.policies_of_namespace(workload.namespace),
            *store.policies_of_namespace(""),
            *workload.authorization_policies,
        )
    )
    return [Applying(key, store.policy(key)) for key in keys]


def nearest(policy: Policy, attempt: Attempt) -> Near | None:
    """The rule that holds for `attempt`, else the one that nearly does; None without rules."""
    found = [_rule(i, rule, attempt) for i, rule in enumerate(policy.rules)]
    return min(found, key=lambda near: (near.cost, near.breadth), default=None)


def holding(policy: Policy, attempt: Attempt) -> list[int]:
    """Which rules hold for `attempt`."""
    found = (_rule(i, rule, attempt) for i, rule in enumerate(policy.rules))
    return [near.rule for near in found if not near.unmet]


def firing(clause: Clause, attempt: Attempt) -> list[int]:
    """Which matches of `clause` fire for `attempt`."""
    return [i for i, match in enumerate(clause) if _fires(match, attempt)]


def text_of(value: object) -> str:
    """A wanted value, as the local state file writes it."""
    match value:
        case StringMatch(kind, text):
            return f"{kind.value} {text}".strip()
        case ServiceAccountMatch(namespace, account):
            return f"{namespace}/{account}"
    return str(value)


def _rule(index: int, rule: Rule, attempt: Attempt) -> Near:
    unmet = (_clause(i, clause, attempt) for i, clause in enumerate(rule))
    return Near(index, tuple(one for one in unmet if one is not None))


def _clause(index: int, clause: Clause, attempt: Attempt) -> Unmet | None:
    """None if it holds; an empty one does."""
    if not clause or firing(clause, attempt):
        return None
    found = [Unmet(index, i, tuple(_misses(match, attempt))) for i, match in enumerate(clause)]
    return min(found, key=lambda unmet: (unmet.cost, unmet.breadth))


def _misses(match: Match, attempt: Attempt) -> list[Miss]:
    found = []
    for field in FIELDS:
        wanted: Sequence[object] = getattr(match, field.name)
        unwanted: Sequence[object] = getattr(match, f"not_{field.name}")
        was = field.was(attempt)
        if wanted and not _has(field, wanted, attempt):
            text = f"{field.word} is {_one_of(wanted)}, was {was}"
            found.append(Miss(field, False, (), text))
        culprits = tuple(i for i, one in enumerate(unwanted) if _has(field, (one,), attempt))
        if culprits:
            text = f"{field.word} is not {_one_of(unwanted)}, was {was}"
            found.append(Miss(field, True, culprits, text))
    return found


def _one_of(values: Sequence[object]) -> str:
    return " or ".join(text_of(value) for value in values)


def _has(field: Field, values: Sequence[object], attempt: Attempt) -> bool:
    only: dict[str, Any] = {field.name: tuple(values)}
    return _fires(Match(**only), attempt)


def _fires(match: Match, attempt: Attempt) -> bool:
    rules = (((match,),),)
    probe = Policy("", "", PolicyScope.GLOBAL, PolicyAction.ALLOW, rules)
    return compile_policy(probe)(attempt)
