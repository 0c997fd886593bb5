# SPDX-License-Identifier: Apache-2.0
"""The plan as text of the iptables programs, and the text that leads from what is there to it.

A rule is written as `iptables-save` shows it. Two chains of ours in a table, the jumps to them from
the built-in chains: nothing else is touched. A restore changes a table at once: it declares our
chains, which empties them, and refills them, and makes or takes only those jumps that differ; so no
packet meets half of the rules, and none has to be stopped meanwhile.

Source: spec redirection, sections 2.2 to 2.9.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from ztunnel_py.redirection.difference import compare
from ztunnel_py.redirection.plan import (
    DNS_ZONE,
    REPLY_MARK,
    Action,
    Family,
    Field,
    Hook,
    Place,
    Redirect,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.redirection.difference import Difference
    from ztunnel_py.redirection.plan import Match, Plan, Rule

PREFIX = "ISTIO"
"""How all chains begin that are ours."""
NAMES = {Hook.PREROUTING: "ISTIO_PRERT", Hook.OUTPUT: "ISTIO_OUTPUT"}
_BITS = {Family.IPV4: 32, Family.IPV6: 128}
_FIRST = (Field.SOURCE, Field.DESTINATION, Field.INPUT, Field.OUTPUT, Field.PROTOCOL)
_ORDER = {field: place for place, field in enumerate(_FIRST)}
"""What is shown first, whatever the order in which it is told."""
_JUMPS = ("-j", "-g")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is ours in one table; every rule is a line `-A CHAIN ..`."""

    chains: dict[str, tuple[str, ...]]
    jumps: tuple[str, ...]
    """Rules of other chains that lead to ours, sorted; with `-I` one that has to be the first."""


NOTHING = Contents({}, ())
Tables = dict[str, Contents]
"""Tables by name; one in which nothing is ours may be absent."""


def contents(plan: Plan, family: Family) -> Tables:
    """The plan as one family's tables."""
    tables: Tables = {}
    for chain in plan.jumps:
        name, builtin = NAMES[chain.hook], chain.hook.name
        of_table = tables.get(chain.table.value, NOTHING)
        rules = tuple(_line(name, rule, plan, family) for rule in plan.of(chain))
        tables[chain.table.value] = Contents(
            {**of_table.chains, name: rules},
            tuple(sorted((*of_table.jumps, f"-A {builtin} -j {name}"))),
        )
    return tables


def parse(saved: str, prefix: str = PREFIX) -> Tables:
    """What is ours in the output of an `iptables-save`: chains whose names begin with `prefix`."""
    tables: Tables = {}
    for block in f"\n{saved}".split("\n*")[1:]:
        table, *lines = block.splitlines()
        found = Contents(
            {
                name: tuple(line for line in lines if line.startswith(f"-A {name} "))
                for line in lines
                if (name := line.partition(" ")[0].removeprefix(":")).startswith(prefix)
            },
            tuple(sorted(line for line in lines if _is_jump(line, prefix))),
        )
        if found != NOTHING:
            tables[table] = found
    return tables


def transition(found: Tables, wanted: Tables) -> str:
    """What `iptables-restore --noflush` has to read to lead from one to the other.

    Empty if they are equal. Wanted chains are refilled even where their rules are equal.
    """
    if found == wanted:
        return ""
    names = sorted({*found, *wanted})
    return "".join(
        _table(name, found.get(name, NOTHING), wanted.get(name, NOTHING)) for name in names
    )


def differences(family: Family, found: Tables, wanted: Tables) -> Iterator[Difference]:
    """Rule by rule; the order within a chain counts, that of options within a rule does not."""
    for table in sorted({*found, *wanted}):
        ours, theirs = wanted.get(table, NOTHING), found.get(table, NOTHING)
        where = f"{family.value} {table}"
        yield from compare(where, _declared(ours), _declared(theirs))
        yield from compare(where, ours.jumps, theirs.jumps)
        for chain, rules in ours.chains.items():
            if chain in theirs.chains:
                yield from compare(f"{where} {chain}", rules, theirs.chains[chain], meaning)


def meaning(line: str) -> frozenset[str]:
    """The options of a rule, each with its value; equal for rules that do the same."""
    options: list[str] = []
    is_not = ""
    for word in line.split():
        if word == "!":
            is_not = "! "
        elif word.startswith("-"):
            options.append(is_not + word)
            is_not = ""
        else:
            options[-1] += f" {word}"
    # the modules follow from the other options, and programs differ in which they show
    return frozenset(option for option in options if not option.startswith("-m "))


# --- a rule


def _line(chain: str, rule: Rule, plan: Plan, family: Family) -> str:
    words = [f"-A {chain}"]
    ordered = sorted(rule.matches, key=lambda match: _ORDER.get(match.field, len(_ORDER)))
    protocol = next((str(m.value) for m in rule.matches if m.field is Field.PROTOCOL), "")
    words += [_match(match, protocol, plan, family) for match in ordered]
    words.append(f"-j {_target(rule.action)}")
    return " ".join(words)


def _match(match: Match, protocol: str, plan: Plan, family: Family) -> str:
    negation = "! " if match.is_not else ""
    value = match.value
    if isinstance(value, Place):
        value = f"{plan.addresses[family, value]}/{_BITS[family]}"
    match match.field:
        case Field.SOURCE:
            return f"{negation}-s {value}"
        case Field.DESTINATION:
            return f"{negation}-d {value}"
        case Field.INPUT:
            return f"{negation}-i {value}"
        case Field.OUTPUT:
            return f"{negation}-o {value}"
        case Field.PROTOCOL:
            return f"{negation}-p {value}"
        case Field.SOURCE_PORT:
            return f"-m {protocol} {negation}--sport {value}"
        case Field.PORT:
            return f"-m {protocol} {negation}--dport {value}"
        case Field.MARK:
            return f"-m mark {negation}--mark {value}"
        case Field.CONNECTION_MARK:
            return f"-m connmark {negation}--mark {value}"
        case _ as never:
            assert_never(never)


def _target(action: Redirect | Action) -> str:
    match action:
        case Redirect(port):
            return f"REDIRECT --to-ports {port}"
        case Action.ACCEPT:
            return "ACCEPT"
        case Action.RETURN:
            return "RETURN"
        case Action.MARK_CONNECTION:
            return f"CONNMARK --set-xmark {REPLY_MARK}"
        case Action.RESTORE_MARK:
            return "CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
        case Action.OWN_ZONE:
            return f"CT --zone {DNS_ZONE}"
        case _ as never:
            assert_never(never)


# --- a table


def _table(name: str, found: Contents, wanted: Contents) -> str:
    if found == wanted == NOTHING:
        return ""
    stale = [chain for chain in found.chains if chain not in wanted.chains]
    there, due = Counter(found.jumps), Counter(wanted.jumps)
    lines = [
        f"*{name}",
        *(f":{chain} - [0:0]" for chain in wanted.chains),
        *(f"-D{jump[2:]}" for jump in (there - due).elements()),
        *(due - there).elements(),
        *(line for rules in wanted.chains.values() for line in rules),
        *(f"-F {chain}" for chain in stale),
        *(f"-X {chain}" for chain in stale),
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


def _is_jump(line: str, prefix: str) -> bool:
    if not line.startswith("-A ") or line.startswith(f"-A {prefix}") or f" {prefix}" not in line:
        return False
    try:
        words = shlex.split(line)  # a comment may hold anything
    except ValueError:
        return False
    return any(
        word in _JUMPS and target.startswith(prefix) for word, target in itertools.pairwise(words)
    )


def _declared(of_table: Contents) -> list[str]:
    return [f"chain {chain}" for chain in sorted(of_table.chains)]
