# SPDX-License-Identifier: Apache-2.0
"""The plan as one transaction of nft, and what nft lists as a plan would be listed.

Three tables of family inet are ours as a whole. Each transaction takes all of them away and makes
those that the plan has; the kernel changes from the old rules to the new ones at once.

Source: spec redirection, section 3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, assert_never

from ztunnel_py.redirection.difference import compare
from ztunnel_py.redirection.plan import (
    DNS_ZONE,
    REPLY_MARK,
    Action,
    Chain,
    Family,
    Field,
    Hook,
    Place,
    Redirect,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.redirection.difference import Difference
    from ztunnel_py.redirection.plan import Match, Plan, Rule

Tables = dict[str, dict[str, tuple[str, ...]]]
"""The lines of each chain of each table; those of a base chain begin with its hook."""

TABLES = {table: f"inet istio-ambient-{table.value}" for table in Table}
_KIND = {Table.MANGLE: "filter", Table.NAT: "nat", Table.RAW: "filter"}
_PRIORITY = {Table.MANGLE: -150, Table.NAT: -100, Table.RAW: -300}
_IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_REROUTING = Chain(Table.MANGLE, Hook.OUTPUT)
"""Where a changed mark has to make the kernel look for a route again."""
_HEX = re.compile(r"0x[0-9a-f]+")
_SET_BITS = re.compile(r"& (\d+) \| (\d+)")


def contents(plan: Plan) -> Tables:
    """The plan as tables, in the words of nft's listing but for what `meaning` levels."""
    tables: Tables = {}
    for chain in plan.jumps:
        chains = tables.setdefault(TABLES[chain.table], {})
        ours = f"istio-{chain.hook.value}"
        chains[chain.hook.value] = (_hook(chain), f"jump {ours}")
        chains[ours] = tuple(line for rule in plan.of(chain) for line in _lines(rule, plan))
    return tables


def parse(listed: str) -> Tables:
    """Our tables in the output of `nft --stateless --numeric-priority list ruleset`.

    What a table has beside chains, such as a set, counts as a chain: it does not belong there.
    """
    tables: Tables = {}
    chains: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in map(str.strip, listed.splitlines()):
        if line.startswith("table "):
            title = line.removeprefix("table ").removesuffix(" {")
            chains = tables.setdefault(title, {}) if title in TABLES.values() else {}
        elif line == "}":
            name = ""
        elif line.endswith(" {") and not name:
            name = line.removesuffix(" {").removeprefix("chain ")
            chains[name] = ()
        elif line and name:
            chains[name] += (line.removesuffix("; policy accept;"),)
    return tables


def transaction(wanted: Tables) -> str:
    """What `nft -f -` has to read so that our tables are those wanted, whatever they were."""
    lines = [f"{verb} table {table}" for table in TABLES.values() for verb in ("add", "delete")]
    for table, chains in wanted.items():
        lines.append(f"add table {table}")
        lines += [f"add chain {table} {chain}{_definition(chains[chain])}" for chain in chains]
        lines += [
            f"add rule {table} {chain} {rule}" for chain in chains for rule in _rules(chains[chain])
        ]
    return "\n".join(lines) + "\n"


def differences(found: Tables, wanted: Tables) -> Iterator[Difference]:
    """Rule by rule; the order within a chain counts."""
    for table in sorted({*found, *wanted}):
        ours, theirs = wanted.get(table, {}), found.get(table, {})
        yield from compare(table, _declared(ours), _declared(theirs))
        for chain, rules in ours.items():
            if chain in theirs:
                yield from compare(f"{table} {chain}", rules, theirs[chain], meaning)


def meaning(line: str) -> str:
    """A rule as nft shows it, however the release at hand writes numbers and names.

    Some show `& a | b` with the bits of b added to a, which does the same.
    """
    words = re.sub(r'[()"]', "", line).replace(" == ", " ")
    words = _HEX.sub(lambda number: str(int(number[0], 16)), words)
    return _SET_BITS.sub(lambda bits: f"& {int(bits[1]) & ~int(bits[2])} | {bits[2]}", words)


# --- a rule


def _hook(chain: Chain) -> str:
    kind = "route" if chain == _REROUTING else _KIND[chain.table]
    return f"type {kind} hook {chain.hook.value} priority {_PRIORITY[chain.table]}"


def _lines(rule: Rule, plan: Plan) -> Iterator[str]:
    """One line serves both families unless an address is named; IPv4 alone has to be said."""
    if any(isinstance(match.value, Place) for match in rule.matches):
        for family in plan.families:
            yield _line(rule, plan, family)
    elif plan.families == tuple(Family):
        yield _line(rule, plan, Family.IPV4)
    else:
        (family,) = plan.families
        yield f"meta nfproto {family.value} {_line(rule, plan, family)}"


def _line(rule: Rule, plan: Plan, family: Family) -> str:
    protocol = next((m.value for m in rule.matches if m.field is Field.PROTOCOL), "")
    has_port = any(m.field in (Field.PORT, Field.SOURCE_PORT) for m in rule.matches)
    words = [
        _match(match, str(protocol), plan, family)
        for match in rule.matches
        if not (has_port and match.field is Field.PROTOCOL)  # the port names it
    ]
    return " ".join((*words, "counter", _statement(rule.action)))


def _match(match: Match, protocol: str, plan: Plan, family: Family) -> str:
    value = match.value
    if isinstance(value, Place):
        value = plan.addresses[family, value]
    sign = "!= " if match.is_not else ""
    match match.field:
        case Field.SOURCE:
            return f"{_IP[family]} saddr {sign}{value}"
        case Field.DESTINATION:
            return f"{_IP[family]} daddr {sign}{value}"
        case Field.INPUT:
            return f'iifname {sign}"{value}"'
        case Field.OUTPUT:
            return f'oifname {sign}"{value}"'
        case Field.PROTOCOL:
            return f"meta l4proto {sign}{value}"
        case Field.SOURCE_PORT:
            return f"{protocol} sport {sign}{value}"
        case Field.PORT:
            return f"{protocol} dport {sign}{value}"
        case Field.MARK:
            return f"meta mark {_masked(str(value), sign)}"
        case Field.CONNECTION_MARK:
            return f"ct mark {_masked(str(value), sign)}"
        case _ as never:
            assert_never(never)


def _masked(value: str, sign: str) -> str:
    mark, _, mask = value.partition("/")
    return f"& {mask} {sign or '== '}{mark}"


def _statement(action: Redirect | Action) -> str:
    match action:
        case Redirect(port):
            return f"redirect to :{port}"
        case Action.ACCEPT:
            return "accept"
        case Action.RETURN:
            return "return"
        case Action.MARK_CONNECTION:
            mark, _, mask = REPLY_MARK.partition("/")
            return f"ct mark set ct mark & {~int(mask, 16) & 0xFFFFFFFF:#x} | {mark}"
        case Action.RESTORE_MARK:
            return "meta mark set ct mark"
        case Action.OWN_ZONE:
            return f"ct zone set {DNS_ZONE}"
        case _ as never:
            assert_never(never)


# --- a table


def _definition(lines: tuple[str, ...]) -> str:
    """What follows the name of a chain that is added."""
    return f" {{ {lines[0]}; }}" if _is_base(lines) else ""


def _rules(lines: tuple[str, ...]) -> tuple[str, ...]:
    return lines[1:] if _is_base(lines) else lines


def _is_base(lines: tuple[str, ...]) -> bool:
    return lines[:1] != () and lines[0].startswith("type ")


def _declared(chains: dict[str, tuple[str, ...]]) -> list[str]:
    return [f"chain {chain}" for chain in sorted(chains)]
