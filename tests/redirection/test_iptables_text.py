# SPDX-License-Identifier: Apache-2.0
"""What iptables is told, given what it shows."""

from __future__ import annotations

from hypothesis import given

from tests.redirection.plans import OPTIONS
from ztunnel_py.redirection import iptables_text
from ztunnel_py.redirection.plan import Family, Options, pod_plan

FOREIGN = (
    '-A OUTPUT -m comment --comment "like -j ISTIO_OUTPUT" -j ACCEPT',
    "-A PREROUTING -j KUBE-SERVICES",
)


def saved(tables: iptables_text.Tables) -> str:
    """As `iptables-save` shows it, among rules of others."""
    lines = []
    for table, content in tables.items():
        lines += [f"*{table}", ":OUTPUT ACCEPT [0:0]", ":KUBE-SERVICES - [0:0]"]
        lines += [f":{chain} - [0:0]" for chain in content.chains]
        lines += [*FOREIGN, *content.jumps]
        lines += [rule for rules in content.chains.values() for rule in rules]
        lines += ["COMMIT"]
    return "# Generated\n" + "\n".join(lines) + "\n"


def restored(before: iptables_text.Tables, text: str) -> iptables_text.Tables:
    """What is there after a restore: a model of `iptables-restore --noflush`."""
    tables = {
        table: (dict(content.chains), list(content.jumps)) for table, content in before.items()
    }
    chains: dict[str, tuple[str, ...]] = {}
    jumps: list[str] = []
    for line in text.splitlines():
        verb, _, rest = line.partition(" ")
        if line.startswith("*"):
            chains, jumps = tables.setdefault(line[1:], ({}, []))
        elif line.startswith(":"):
            chains[verb[1:]] = ()
        elif verb == "-D":
            jumps.remove(f"-A {rest}")
        elif verb == "-A" and (name := rest.split()[0]) in chains:
            chains[name] += (line,)
        elif verb == "-A":
            jumps.append(line)
        elif verb == "-X":
            assert chains.pop(rest) == ()
            assert not [jump for jump in jumps if rest in jump]
        elif verb == "-F":
            chains[rest] = ()
        else:
            assert line == "COMMIT"
    return {
        table: iptables_text.Contents(chains, tuple(sorted(jumps)))
        for table, (chains, jumps) in tables.items()
        if chains or jumps
    }


@given(OPTIONS)
def test_what_is_shown_is_understood_among_rules_of_others(options: Options) -> None:
    tables = iptables_text.contents(pod_plan(options), Family.IPV6)

    assert iptables_text.parse(saved(tables)) == tables


@given(OPTIONS, OPTIONS)
def test_from_any_plan_to_any_other(before: Options, after: Options) -> None:
    found, wanted = (
        iptables_text.contents(pod_plan(options), Family.IPV4) for options in (before, after)
    )

    text = iptables_text.transition(found, wanted)

    assert restored(found, text) == wanted
    assert (text == "") == (found == wanted)
    assert restored(wanted, iptables_text.transition(wanted, {})) == {}
    is_same = not list(iptables_text.differences(Family.IPV4, found, wanted))
    assert is_same == (found == wanted)


def test_table_that_has_what_it_should_keeps_its_jumps() -> None:
    wanted = iptables_text.contents(pod_plan(Options(has_dns=True)), Family.IPV4)
    found = iptables_text.contents(pod_plan(Options()), Family.IPV4)

    text = iptables_text.transition(found, wanted)

    assert [line for line in text.splitlines() if " -j ISTIO" in line] == [
        "-A OUTPUT -j ISTIO_OUTPUT",
        "-A PREROUTING -j ISTIO_PRERT",
    ]
    assert text.index("*raw") < text.index("-A PREROUTING")


def test_order_of_options_within_a_rule_does_not_count() -> None:
    one = "-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x1/0xfff -m udp --dport 53 -j ACCEPT"
    other = "-A ISTIO_OUTPUT ! -o lo -p udp -m udp --dport 53 -m mark ! --mark 0x1/0xfff -j ACCEPT"

    assert iptables_text.meaning(one) == iptables_text.meaning(other)
    assert iptables_text.meaning(one) != iptables_text.meaning(one.replace("! -o", "-o"))
