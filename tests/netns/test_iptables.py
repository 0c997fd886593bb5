# SPDX-License-Identifier: Apache-2.0
"""The scripts in `iptables/`: which rules they install, and that they remove them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ztunnel_py.cli.topology import SCRIPTS, TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ztunnel_py.cli.topology import Pod

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


def saved(pod: Pod, family: str, backend: str) -> dict[str, list[str]]:
    """The rules of each table in use, in the order of the kernel."""
    tables: dict[str, list[str]] = {}
    table = ""
    for line in pod.run([f"{family}-{backend}-save"]).stdout.splitlines():
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


def everything(pod: Pod, backend: str) -> str:
    """All chains and rules of both families, as text."""
    return "".join(pod.run([f"{family}-{backend}-save"]).stdout for family in FAMILIES.values())


@pytest.mark.spec("redir-1")
def test_ipv4_rules_with_dns_are_those_of_ztunnel_in_order(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")

    pod.enrol("--dns", backend=backend)

    assert saved(pod, "iptables", backend) == expected("iptables")


@pytest.mark.spec("redir-2")
def test_ipv6_rules_differ_in_addresses_only(clean: Callable[[str], Pod], backend: str) -> None:
    pod = clean("bare")

    pod.enrol("--dns", backend=backend)

    assert saved(pod, "ip6tables", backend) == expected("ip6tables")


@pytest.mark.spec("redir-4")
def test_without_dns_the_raw_table_is_not_touched(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("client" if backend == "nft" else "server")  # where nobody has used raw before

    pod.enrol(backend=backend)

    rules = saved(pod, "iptables", backend)
    assert "raw" not in rules
    assert rules["nat"] == [rule for rule in expected("iptables")["nat"] if "15053" not in rule]


def test_dns_rules_go_away_when_applied_without_dns(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)

    pod.enrol(backend=backend)

    assert saved(pod, "iptables", backend)["raw"] == []
    assert "15053" not in everything(pod, backend)


def test_applying_twice_leaves_one_copy_of_each_rule(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)
    once = everything(pod, backend), routing(pod)

    pod.enrol("--dns", backend=backend)

    twice = everything(pod, backend), routing(pod)
    assert [line for line in once[0].splitlines() if line.startswith("-A")] == [
        line for line in twice[0].splitlines() if line.startswith("-A")
    ]
    assert once[1] == twice[1]


def test_a_missing_rule_is_put_back(clean: Callable[[str], Pod], backend: str) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)
    pod.run([f"iptables-{backend}", "-t", "nat", "-D", "ISTIO_OUTPUT", "4"])

    pod.enrol("--dns", backend=backend)

    assert saved(pod, "iptables", backend) == expected("iptables")


def test_a_foreign_rule_stays(clean: Callable[[str], Pod], backend: str) -> None:
    pod = clean("bare")
    foreign = ["OUTPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT"]
    pod.run([f"iptables-{backend}", "-t", "nat", "-A", *foreign])

    pod.enrol("--dns", backend=backend)
    pod.unenrol(backend=backend)

    assert saved(pod, "iptables", backend)["nat"] == ["-A OUTPUT -p tcp -m tcp --dport 9 -j ACCEPT"]
    pod.run([f"iptables-{backend}", "-t", "nat", "-D", *foreign])


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
    pod.enrol("--dns", backend=backend)

    pod.unenrol(backend=backend)

    assert "ISTIO" not in everything(pod, backend)
    assert routing(pod) == {"-4": ("", ""), "-6": ("", "")}


@pytest.mark.spec("redir-18")
def test_removal_of_nothing_is_success(clean: Callable[[str], Pod], backend: str) -> None:
    pod = clean("bare")

    pod.unenrol(backend=backend)
    pod.unenrol(backend=backend)

    assert "ISTIO" not in everything(pod, backend)


@pytest.mark.spec("redir-3")
def test_ipv4_only_runs_no_ip6tables(
    clean: Callable[[str], Pod], backend: str, tmp_path: Path
) -> None:
    pod = clean("bare")
    for name in (f"ip6tables-{backend}{suffix}" for suffix in ("", "-save", "-restore")):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)

    apply = f'PATH="{tmp_path}:$PATH" exec sh {SCRIPTS}/apply.sh --dns --ipv4-only'
    pod.run(["sh", "-c", apply], env={"FORCE_IPTABLES_BINARY": backend})

    assert saved(pod, "iptables", backend) == expected("iptables")
    assert "ISTIO" not in pod.run([f"ip6tables-{backend}-save"]).stdout
    assert routing(pod)["-6"] == ("", "")


@pytest.mark.spec("redir-25")
def test_ipv6_route_is_left_out_when_lo_has_no_ipv6(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    switch = "echo {} > /proc/sys/net/ipv6/conf/lo/disable_ipv6"
    pod.run(["sh", "-c", switch.format(1)])

    pod.enrol(backend=backend)

    found = routing(pod)
    pod.run(["sh", "-c", switch.format(0)])
    assert found["-6"][1] == ""
    assert found["-4"][1] != ""
    assert "ISTIO_PRERT" in everything(pod, backend)


@pytest.mark.spec("redir-21")
def test_an_unknown_backend_is_an_error(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")

    with pytest.raises(TopologyError, match="FORCE_IPTABLES_BINARY is 'ipchains'; expected nft"):
        pod.enrol(backend="ipchains")

    assert "ISTIO" not in everything(pod, "nft")


@pytest.mark.spec("redir-22")
def test_the_backend_found_stays_the_same(clean: Callable[[str], Pod]) -> None:
    pod = clean("client")

    pod.enrol()
    pod.enrol()

    assert "ISTIO" in everything(pod, "nft")
    assert "ISTIO" not in everything(pod, "legacy")


def test_legacy_rules_are_found_without_being_told(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")
    pod.enrol(backend="legacy")

    pod.unenrol()

    assert "ISTIO" not in everything(pod, "legacy")
