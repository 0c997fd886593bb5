# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py redirect` in a pod: which rules it makes, and that it takes them away."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.netns.conftest import BACKENDS, IPTABLES, before
from ztunnel_py.cli.topology import TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ztunnel_py.cli.topology import Mesh, Pod

PROBE = {"iptables": "169.254.7.127/32", "ip6tables": "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128"}
LOOPBACK = {"iptables": "127.0.0.1/32", "ip6tables": "::1/128"}
RULES = {
    "mangle": [
        "-A PREROUTING -j ISTIO_PRERT",
        "-A OUTPUT -j ISTIO_OUTPUT",
        "-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK"
        " --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        "-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff",
    ],
    "nat": [
        "-A PREROUTING -j ISTIO_PRERT",
        "-A OUTPUT -j ISTIO_OUTPUT",
        "-A ISTIO_OUTPUT -d PROBE -p tcp -j ACCEPT",
        "-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff"
        " -m udp --dport 53 -j REDIRECT --to-ports 15053",
        "-A ISTIO_OUTPUT ! -d LOOPBACK -p tcp -m tcp --dport 53"
        " -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053",
        "-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT",
        "-A ISTIO_OUTPUT ! -d LOOPBACK -o lo -j ACCEPT",
        "-A ISTIO_OUTPUT ! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff"
        " -j REDIRECT --to-ports 15001",
        "-A ISTIO_PRERT -s PROBE -p tcp -j ACCEPT",
        "-A ISTIO_PRERT ! -d LOOPBACK -p tcp -m tcp ! --dport 15008"
        " -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006",
    ],
    "raw": [
        "-A PREROUTING -j ISTIO_PRERT",
        "-A OUTPUT -j ISTIO_OUTPUT",
        "-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1",
        "-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1",
    ],
}
FAMILIES = {"-4": "iptables", "-6": "ip6tables"}
TABLES = re.compile(r"^table inet istio-ambient-(\w+)", re.MULTILINE)
HOOKS = re.compile(r"type (\w+) hook (\w+) priority (-?\d+)")
LISTED = ("nft", "-y", "-s", "list", "ruleset", "inet")


def program(family: str, backend: str) -> str:
    """The name of a program of one kind of iptables."""
    return f"{family}-{backend.removeprefix('iptables-')}"


def saved(pod: Pod, family: str, backend: str) -> dict[str, list[str]]:
    """The rules of each table in use, in the order of the kernel."""
    tables: dict[str, list[str]] = {}
    table = ""
    for line in pod.run([f"{program(family, backend)}-save"]).stdout.splitlines():
        if line.startswith("*"):
            table = line[1:]
            tables[table] = []
        elif line.startswith("-A"):
            tables[table].append(line)
    return tables


def expected(family: str) -> dict[str, list[str]]:
    """The rules with DNS capture, for one family."""
    names = {"PROBE": PROBE[family], "LOOPBACK": LOOPBACK[family]}
    return {
        table: [
            rule.replace("PROBE", names["PROBE"]).replace("LOOPBACK", names["LOOPBACK"])
            for rule in rules
        ]
        for table, rules in RULES.items()
    }


def routing(pod: Pod) -> dict[str, tuple[str, str]]:
    """The policy rule of ours and the routes of table 100, per family."""
    return {
        family: (
            pod.run(["ip", family, "rule", "show", "pref", "32764"]).stdout.strip(),
            pod.run(["ip", family, "route", "show", "table", "100"], check=False).stdout.strip(),
        )
        for family in FAMILIES
    }


def everything(pod: Pod) -> list[str]:
    """All rules of both families by all programs, without counters and empty tables."""
    text = pod.run(list(LISTED)).stdout
    for backend in IPTABLES:
        for family in FAMILIES.values():
            text += pod.run([f"{program(family, backend)}-save"]).stdout
    rules = "".join(f"{line}\n" for line in text.splitlines() if line[:1] not in ":#")
    return re.sub(r"^\*\w+\nCOMMIT\n", "", rules, flags=re.MULTILINE).splitlines()


def is_clean(pod: Pod) -> bool:
    """Nothing of ours is there."""
    found = "\n".join(everything(pod))
    no_routing = {"-4": ("", ""), "-6": ("", "")}
    return "istio" not in found.lower() and routing(pod) == no_routing


@pytest.fixture(params=IPTABLES)
def iptables(request: pytest.FixtureRequest) -> str:
    """Each of the two kinds of iptables."""
    return str(request.param)


@pytest.mark.spec("redir-1")
def test_ipv4_rules_with_dns_are_those_of_ztunnel_in_order(
    clean: Callable[[str], Pod], iptables: str
) -> None:
    pod = clean("bare")

    pod.enrol("--dns", backend=iptables)

    assert saved(pod, "iptables", iptables) == expected("iptables")


@pytest.mark.spec("redir-2")
def test_ipv6_rules_differ_in_addresses_only(clean: Callable[[str], Pod], iptables: str) -> None:
    pod = clean("bare")

    pod.enrol("--dns", backend=iptables)

    assert saved(pod, "ip6tables", iptables) == expected("ip6tables")


@pytest.mark.spec("redir-4")
def test_without_dns_the_raw_table_is_not_touched(
    clean: Callable[[str], Pod], iptables: str
) -> None:
    pod = clean("client" if iptables == "iptables-nft" else "server")  # nobody has used raw there

    pod.enrol(backend=iptables)

    rules = saved(pod, "iptables", iptables)
    assert "raw" not in rules
    assert rules["nat"] == [rule for rule in expected("iptables")["nat"] if "15053" not in rule]


@pytest.mark.spec("redir-19")
def test_nft_has_three_tables_hooked_in_where_iptables_would_be(
    clean: Callable[[str], Pod],
) -> None:
    pod = clean("bare")

    pod.enrol("--dns", backend="nft")

    listed = pod.run(list(LISTED)).stdout
    assert set(TABLES.findall(listed)) == {"nat", "mangle", "raw"}
    assert sorted(HOOKS.findall(listed)) == [
        ("filter", "output", "-300"),
        ("filter", "prerouting", "-150"),
        ("filter", "prerouting", "-300"),
        ("nat", "output", "-100"),
        ("nat", "prerouting", "-100"),
        ("route", "output", "-150"),
    ]


@pytest.mark.spec("redir-20")
def test_dns_rules_go_away_when_applied_without_dns(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)

    pod.enrol(backend=backend)

    found = everything(pod)
    assert "istio-ambient-raw" not in TABLES.findall("\n".join(found))
    assert not [line for line in found if "15053" in line or "zone" in line]


@pytest.mark.spec("redir-12")
def test_applying_twice_leaves_one_copy_of_each_rule(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)
    once = everything(pod), routing(pod)

    pod.enrol("--dns", backend=backend)

    assert (everything(pod), routing(pod)) == once


@pytest.mark.parametrize("former", BACKENDS)
def test_other_programs_take_over_without_a_trace(
    clean: Callable[[str], Pod], backend: str, former: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)
    alone = everything(pod)
    pod.unenrol()
    pod.enrol("--dns", backend=former)

    pod.enrol("--dns", backend=backend)

    ours = [line for line in everything(pod) if "istio" in line.lower()]
    assert ours == [line for line in alone if "istio" in line.lower()]


@pytest.mark.spec("redir-24")
def test_table_100_makes_every_address_local(clean: Callable[[str], Pod], backend: str) -> None:
    pod = clean("bare")

    pod.enrol(backend=backend)

    for rule, route in routing(pod).values():
        assert rule == "32764:\tfrom all fwmark 0x111/0xfff lookup 100"
        assert route.startswith("local default dev lo")


@pytest.mark.spec("redir-26")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_existing_policy_rule_is_success(clean: Callable[[str], Pod], family: str) -> None:
    pod = clean("bare")
    rule = ["fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100"]
    pod.run(["ip", family, "rule", "add", *rule])

    pod.enrol()

    for found, _ in routing(pod).values():
        assert found.count("32764:") == 1


@pytest.mark.spec("redir-17")
def test_removal_leaves_nothing(clean: Callable[[str], Pod], backend: str) -> None:
    pod = clean("bare")
    pod.enrol("--dns", "--virtual-interface", "tap0", backend=backend)
    assert not is_clean(pod)

    pod.unenrol()

    assert is_clean(pod)


@pytest.mark.spec("redir-18")
def test_removal_of_nothing_is_success(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")

    pod.unenrol()
    pod.unenrol()

    assert is_clean(pod)


@pytest.mark.spec("redir-3")
def test_ipv4_only_runs_no_ip6tables(
    clean: Callable[[str], Pod], iptables: str, tmp_path: Path
) -> None:
    pod = clean("bare")
    for suffix in ("", "-save", "-restore"):
        script = tmp_path / f"{program('ip6tables', iptables)}{suffix}"
        script.write_text("#!/bin/sh\nexit 1\n")
        script.chmod(0o755)

    pod.redirect("apply", "--dns", "--no-ipv6", backend=iptables, env=before(tmp_path))

    assert saved(pod, "iptables", iptables) == expected("iptables")
    assert "ISTIO" not in pod.run([f"{program('ip6tables', iptables)}-save"]).stdout
    assert routing(pod)["-6"] == ("", "")


def test_ipv4_only_leaves_ipv6_alone_in_nft(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")

    pod.enrol("--dns", "--no-ipv6", backend="nft")

    rules = [line for line in everything(pod) if "counter" in line]
    assert rules
    assert not [rule for rule in rules if "nfproto ipv4" not in rule and "ip " not in rule]


@pytest.mark.spec("redir-25")
def test_ipv6_route_is_left_out_when_lo_has_no_ipv6(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    switch = "echo {} > /proc/sys/net/ipv6/conf/lo/disable_ipv6"
    pod.run(["sh", "-c", switch.format(1)])

    pod.enrol(backend=backend)

    found = routing(pod)
    differences = pod.redirect("verify", backend=backend).stdout
    pod.run(["sh", "-c", switch.format(0)])
    assert found["-6"][1] == ""
    assert found["-4"][1] != ""
    assert differences == ""


@pytest.mark.spec("redir-21")
def test_an_unknown_backend_is_an_error(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")

    with pytest.raises(TopologyError, match="FORCE_IPTABLES_BINARY is 'ipchains'; expected legacy"):
        pod.enrol(backend="iptables-ipchains")

    assert is_clean(pod)


@pytest.mark.spec("redir-22")
def test_the_backend_found_stays_the_same(clean: Callable[[str], Pod]) -> None:
    pod = clean("client")

    pod.enrol()
    once = everything(pod)
    pod.enrol()

    assert everything(pod) == once
    assert saved(pod, "iptables", "iptables-nft")["nat"]


def test_rules_in_use_are_found_without_being_told(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)
    once = everything(pod)

    pod.enrol("--dns")

    assert everything(pod) == once


def test_legacy_rules_of_others_make_legacy_the_usual_kind(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")
    pod.run(["iptables-legacy", "-t", "filter", "-A", "FORWARD", "-j", "ACCEPT"])

    pod.enrol()

    found = saved(pod, "iptables", "iptables-legacy")
    pod.run(["iptables-legacy", "-t", "filter", "-F", "FORWARD"])
    assert "-A PREROUTING -j ISTIO_PRERT" in found["nat"]


def test_a_namespace_may_be_named_from_outside(mesh: Mesh, clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")

    pod.redirect("apply", where=mesh.node(pod.node))

    assert not is_clean(pod)
    pod.redirect("remove", where=mesh.node(pod.node))
    assert is_clean(pod)


@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_dry_run_changes_nothing_and_its_script_does_the_same(
    clean: Callable[[str], Pod], backend: str, verb: str
) -> None:
    pod = clean("bare")
    if verb == "remove":
        pod.enrol("--dns", backend=backend)
    untouched = everything(pod)

    script = pod.redirect(verb, "--dry-run", "--dns", backend=backend).stdout

    assert everything(pod) == untouched
    pod.run(["sh"], text_in=script)
    status = pod.redirect("verify", "--dns", backend=backend, check=False).returncode
    assert (status == 0, is_clean(pod)) == (verb == "apply", verb == "remove")
