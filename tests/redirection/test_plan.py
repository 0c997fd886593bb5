# SPDX-License-Identifier: Apache-2.0
"""The plan: which rules, in which order, by which options."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given

from tests.redirection.plans import OPTIONS
from ztunnel_py.redirection import iptables_text
from ztunnel_py.redirection.plan import (
    MAX_VIRTUAL_INTERFACES,
    PROBE_V4,
    PROBE_V6,
    Family,
    Options,
    PlanError,
    pod_plan,
)

VARIANTS = {
    "DNS": (Options(has_dns=True), (2, 2, 6, 2)),
    "no DNS": (Options(), (2, 2, 4, 0)),
    "ingress": (Options(is_ingress=True), (2, 0, 4, 0)),
    "virtual interfaces": (Options(virtual_interfaces=("a", "b", "c")), (2, 8, 4, 0)),
    "both": (Options(is_ingress=True, virtual_interfaces=("a", "b")), (2, 4, 4, 0)),
}


def chain(options: Options, table: str, name: str, family: Family = Family.IPV4) -> list[str]:
    """The rules of a chain, without its name."""
    tables = iptables_text.contents(pod_plan(options), family)
    return [rule.removeprefix(f"-A {name} ") for rule in tables[table].chains[name]]


def outgoing(options: Options) -> list[str]:
    """The rules for what the pod sends."""
    return chain(options, "nat", "ISTIO_OUTPUT")


def incoming(options: Options) -> list[str]:
    """The rules for what comes to the pod."""
    return chain(options, "nat", "ISTIO_PRERT")


@pytest.mark.spec("redir-1")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", Family)
def test_number_of_rules_follows_from_the_options(variant: str, family: Family) -> None:
    options, (mangle, nat_in, nat_out, raw) = VARIANTS[variant]

    tables = iptables_text.contents(pod_plan(options), family)

    assert sum(len(rules) for rules in tables["mangle"].chains.values()) == mangle
    assert len(tables["nat"].chains["ISTIO_PRERT"]) == nat_in
    assert len(tables["nat"].chains["ISTIO_OUTPUT"]) == nat_out
    assert ("raw" in tables) == bool(raw)
    assert sum(len(table.jumps) for table in tables.values()) == (6 if raw else 4)


@pytest.mark.spec("redir-2")
@given(OPTIONS)
def test_families_differ_in_two_addresses(options: Options) -> None:
    plan = pod_plan(options)

    four, six = (str(iptables_text.contents(plan, family)) for family in Family)

    probe, loopback = (f"{PROBE_V4}/32", f"{PROBE_V6}/128"), ("127.0.0.1/32", "::1/128")
    assert four.replace(*probe).replace(*loopback) == six


@pytest.mark.spec("redir-7")
def test_ingress_mode_leaves_plaintext_but_marks_and_answers_probes() -> None:
    usual, ingress = Options(), Options(is_ingress=True)

    assert len(incoming(usual)) == 2
    assert incoming(ingress) == []
    assert outgoing(ingress) == outgoing(usual)
    for name in ("ISTIO_PRERT", "ISTIO_OUTPUT"):
        assert chain(ingress, "mangle", name) == chain(usual, "mangle", name) != []


@pytest.mark.spec("redir-8")
def test_virtual_interfaces_come_first_in_the_order_given() -> None:
    rules = incoming(Options(virtual_interfaces=("b", "a")))

    assert rules[:4] == [
        "-i b -p tcp -j REDIRECT --to-ports 15001",
        "-i b -p tcp -j RETURN",
        "-i a -p tcp -j REDIRECT --to-ports 15001",
        "-i a -p tcp -j RETURN",
    ]
    assert rules[4:] == incoming(Options())


@pytest.mark.spec("redir-9")
def test_outgoing_rules_are_in_the_order_that_decides() -> None:
    rules = outgoing(Options(has_dns=True))

    def place(words: str) -> int:
        (found,) = (i for i, rule in enumerate(rules) if words in rule)
        return found

    dns_tcp, replies = place("-m tcp --dport 53"), place("--mark 0x111/0xfff")
    assert dns_tcp < replies < place("-o lo -j ACCEPT") < place("--to-ports 15001")


@pytest.mark.spec("redir-10")
def test_incoming_spares_hbone_loopback_and_the_proxy() -> None:
    rule = incoming(Options())[-1]

    assert rule == (
        "! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff"
        " -j REDIRECT --to-ports 15006"
    )


@pytest.mark.spec("redir-11")
@given(OPTIONS)
def test_marks_serve_all_protocols(options: Options) -> None:
    rules = [
        rule for name in ("ISTIO_PRERT", "ISTIO_OUTPUT") for rule in chain(options, "mangle", name)
    ]

    assert len(rules) == 2
    assert not [rule for rule in rules if " -p " in f" {rule}"]


@given(OPTIONS)
def test_every_redirection_spares_the_proxy_or_is_of_a_guest(options: Options) -> None:
    rules = [*incoming(options), *outgoing(options)]

    redirections = [rule for rule in rules if "REDIRECT" in rule]
    assert redirections
    for rule in redirections:
        assert "! --mark 0x539/0xfff" in rule or rule.startswith("-i ")


@given(OPTIONS)
def test_every_chain_with_rules_is_reached(options: Options) -> None:
    plan = pod_plan(options)

    assert {rule.chain for rule in plan.rules} <= set(plan.jumps)
    assert len(plan.jumps) == len(set(plan.jumps))


@pytest.mark.parametrize(
    "name",
    ["", "-j", "a b", "a\n-A OUTPUT", 'a"', "eth+", "eth*", "a/b", "a:b", "sixteen-letters-", "!"],
)
def test_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="no name of a virtual interface"):
        pod_plan(Options(virtual_interfaces=("eth0", name)))


def test_virtual_interfaces_are_bounded() -> None:
    names = tuple(
        itertools.islice((f"tap{i}" for i in itertools.count()), MAX_VIRTUAL_INTERFACES + 1)
    )

    pod_plan(Options(virtual_interfaces=names[1:]))
    with pytest.raises(PlanError, match="33 virtual interfaces; at most 32"):
        pod_plan(Options(virtual_interfaces=names))
