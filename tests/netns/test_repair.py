# SPDX-License-Identifier: Apache-2.0
"""Rules that somebody has changed, and programs that fail: what is seen, repaired, undone."""

from __future__ import annotations

import itertools
import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.netns.conftest import APP_PORT, IPTABLES, OURS, SOCKETS, before
from tests.netns.test_redirection import everything, is_clean, program, routing
from ztunnel_py.cli.topology import TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ztunnel_py.cli.demo_mesh import Journal
    from ztunnel_py.cli.topology import Mesh, Pod

NAT = "inet istio-ambient-nat"
APPLY = [sys.executable, "-m", "ztunnel_py", "redirect", "apply", "--backend"]
FOREIGN = ["-p", "tcp", "-m", "tcp", "--dport", "9", "-j", "ACCEPT"]


def damage(pod: Pod, backend: str) -> None:
    """Takes the first rule of the chain for what the pod sends; it does not capture."""
    if backend == "nft":
        listed = pod.run(["nft", "-a", "list", "chain", *NAT.split(), "istio-output"]).stdout
        handle = next(line for line in listed.splitlines() if "accept" in line).split()[-1]
        pod.run(["nft", "delete", "rule", *NAT.split(), "istio-output", "handle", handle])
    else:
        pod.run([program("iptables", backend), "-t", "nat", "-D", "ISTIO_OUTPUT", "1"])


def add_foreign(pod: Pod, backend: str, chain: str) -> None:
    """Puts a rule that accepts before the others of a chain for what the pod sends."""
    if backend == "nft":
        rule = ["insert", "rule", *NAT.split(), chain, "tcp", "dport", "9", "accept"]
        pod.run(["nft", *rule])
    else:
        pod.run([program("iptables", backend), "-t", "nat", "-I", chain, *FOREIGN])


def differences(pod: Pod, backend: str) -> list[str]:
    """What `verify` says; its exit status says whether that is anything."""
    done = pod.redirect("verify", "--dns", backend=backend, check=False)
    assert done.returncode == (2 if done.stdout else 0), done.stderr
    return done.stdout.splitlines()


@pytest.mark.spec("redir-13")
def test_missing_rule_is_seen_and_put_back(clean: Callable[[str], Pod], backend: str) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)
    whole = everything(pod)
    assert differences(pod, backend) == []
    damage(pod, backend)

    (seen,) = differences(pod, backend)

    assert seen.startswith("missing in ")
    assert "169.254.7.127" in seen
    pod.enrol("--dns", backend=backend)
    assert everything(pod) == whole


def test_foreign_rule_in_a_chain_of_ours_is_seen_and_taken_away(
    clean: Callable[[str], Pod], backend: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=backend)
    whole = everything(pod)
    add_foreign(pod, backend, "istio-output" if backend == "nft" else "ISTIO_OUTPUT")

    (seen,) = differences(pod, backend)

    assert seen.startswith("extra in ")
    assert "dport 9" in seen
    pod.enrol("--dns", backend=backend)
    assert everything(pod) == whole


def test_rules_in_another_order_are_seen(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")
    pod.enrol(backend="iptables-nft")
    chain = ["iptables-nft", "-t", "nat"]
    pod.run([*chain, "-D", "ISTIO_PRERT", "1"])
    pod.run([*chain, "-A", "ISTIO_PRERT", "-s", "169.254.7.127", "-p", "tcp", "-j", "ACCEPT"])

    done = pod.redirect("verify", backend="iptables-nft", check=False)

    assert done.returncode == 2
    assert "ipv4 nat ISTIO_PRERT" in done.stdout


@pytest.mark.spec("redir-14")
@pytest.mark.parametrize("iptables", IPTABLES)
def test_unexpected_chain_of_ours_goes_with_the_jump_to_it(
    clean: Callable[[str], Pod], iptables: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=iptables)
    whole = everything(pod)
    for table in ("nat", "filter"):
        chain = [program("iptables", iptables), "-t", table]
        pod.run([*chain, "-N", "ISTIO_OLD"])
        pod.run([*chain, "-A", "ISTIO_OLD", "-j", "ACCEPT"])
        pod.run([*chain, "-I", "OUTPUT", "-p", "tcp", "-j", "ISTIO_OLD"])
    pod.run([program("iptables", iptables), "-t", "nat", "-A", "OUTPUT", "-j", "ISTIO_OUTPUT"])

    seen = differences(pod, iptables)

    assert seen == [
        "extra in ipv4 filter: chain ISTIO_OLD",
        "extra in ipv4 filter: -A OUTPUT -p tcp -j ISTIO_OLD",
        "extra in ipv4 nat: chain ISTIO_OLD",
        "extra in ipv4 nat: -A OUTPUT -j ISTIO_OUTPUT",
        "extra in ipv4 nat: -A OUTPUT -p tcp -j ISTIO_OLD",
    ]
    pod.enrol("--dns", backend=iptables)
    ours = [line for line in everything(pod) if "ISTIO" in line]
    assert ours == [line for line in whole if "ISTIO" in line]


@pytest.mark.spec("redir-15")
@pytest.mark.parametrize("iptables", IPTABLES)
def test_foreign_rule_in_a_built_in_chain_is_no_difference_and_stays(
    clean: Callable[[str], Pod], iptables: str
) -> None:
    pod = clean("bare")
    pod.enrol("--dns", backend=iptables)
    add_foreign(pod, iptables, "OUTPUT")
    foreign = f"-A OUTPUT {' '.join(FOREIGN)}"

    assert differences(pod, iptables) == []
    pod.enrol(backend=iptables)
    assert foreign in everything(pod)
    pod.unenrol()
    left = everything(pod)
    pod.run([program("iptables", iptables), "-t", "nat", "-D", "OUTPUT", *FOREIGN])
    assert foreign in left
    assert "ISTIO" not in "".join(left)


def test_missing_route_and_rule_are_seen_and_put_back(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")
    pod.enrol()
    whole = routing(pod)
    pod.run(["ip", "rule", "del", "pref", "32764"])
    pod.run(["ip", "-6", "route", "flush", "table", "100"])

    done = pod.redirect("verify", check=False)

    assert done.stdout.splitlines() == [
        "missing in ipv4 routing: rule fwmark 0x111/0xfff pref 32764 lookup 100",
        "missing in ipv6 routing: route local ::/0 dev lo scope host table 100",
    ]
    pod.enrol()
    assert routing(pod) == whole


@pytest.mark.spec("redir-16", "redir-20")
def test_nothing_gets_past_the_proxy_while_rules_are_repaired(
    mesh: Mesh,
    journals: dict[str, Journal],
    clean: Callable[[str], Pod],
    backend: str,
    tmp_path: Path,
) -> None:
    client, server = clean("client"), mesh.pod("server")
    client.enrol("--dns", backend=backend)
    knocking = [sys.executable, str(SOCKETS), "knock", server.ipv4, str(APP_PORT)]
    with (tmp_path / "answers").open("w") as answers:
        knocker = client.popen([*knocking, "--times", "4000"], stdout=answers)

    for options in itertools.cycle([("--dns",), ()]):
        damage(client, backend)
        client.enrol(*options, backend=backend)
        if knocker.poll() is not None:
            break

    assert json.loads((tmp_path / "answers").read_text()) == {"15001": 4000}


@pytest.mark.parametrize("family", ["iptables", "ip6tables"])
@pytest.mark.parametrize("iptables", IPTABLES)
def test_failure_half_way_leaves_a_clean_pod_clean(
    clean: Callable[[str], Pod], iptables: str, family: str, tmp_path: Path
) -> None:
    pod = clean("bare")
    name = break_half_way(tmp_path, program(family, iptables))

    done = pod.redirect("apply", "--dns", backend=iptables, env=before(tmp_path), check=False)

    assert done.returncode == 1
    assert done.stderr == f"error: {name} failed with 1: out of luck\n"
    assert is_clean(pod)


def test_failure_half_way_leaves_former_rules_as_they_were(
    clean: Callable[[str], Pod], tmp_path: Path
) -> None:
    pod = clean("bare")
    pod.enrol("--virtual-interface", "tap0", backend="iptables-nft")
    former = everything(pod), routing(pod)
    break_half_way(tmp_path, "ip6tables-nft")

    with pytest.raises(TopologyError, match="ip6tables-nft-restore failed with 1: out of luck"):
        pod.redirect("apply", "--dns", backend="iptables-nft", env=before(tmp_path))

    assert (everything(pod), routing(pod)) == former


def test_failure_that_cannot_be_undone_is_told(clean: Callable[[str], Pod], tmp_path: Path) -> None:
    pod = clean("bare")
    break_half_way(tmp_path, "iptables-nft", is_for_good=True)

    with pytest.raises(TopologyError, match="ipv4 are neither the old nor the new ones"):
        pod.redirect("apply", "--dns", backend="iptables-nft", env=before(tmp_path))


def test_nft_that_fails_leaves_a_clean_pod_clean(
    clean: Callable[[str], Pod], tmp_path: Path
) -> None:
    pod = clean("bare")
    write(tmp_path / "nft", '[ "$1" != -f ] || { echo out of luck >&2; exit 1; }\nexec "$NFT" "$@"')
    env = {**before(tmp_path), "NFT": pod.run(["which", "nft"]).stdout.strip()}

    done = pod.redirect("apply", backend="nft", env=env, check=False)

    assert done.stderr == "error: nft failed with 1: out of luck\n"
    assert is_clean(pod)


def break_half_way(folder: Path, name: str, *, is_for_good: bool = False) -> str:
    """Puts a program in place of a restore that does half of the work and fails, the first time.

    Returns its name.
    """
    script = folder / f"{name}-restore"
    write(
        script,
        f'if [ -e {folder}/failed ]; then exec "$(PATH=/usr/sbin:/sbin command -v {script.name})"'
        ' "$@"; fi\n'
        f"{'' if is_for_good else f'touch {folder}/failed'}\n"
        f'sed "/^COMMIT/q" | PATH=/usr/sbin:/sbin:/usr/bin {script.name} "$@"\n'
        "echo out of luck >&2\nexit 1",
    )
    return script.name


def write(script: Path, body: str) -> None:
    """Writes a shell script."""
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)


def test_missing_program_is_named(clean: Callable[[str], Pod], tmp_path: Path) -> None:
    pod = clean("bare")

    hidden = 'mount --bind /dev/null "$(command -v nft)" && exec "$@"'

    done = pod.run(
        ["unshare", "-m", "sh", "-c", hidden, "sh", *APPLY, "nft"], env=OURS, check=False
    )

    assert done.returncode == 1
    assert done.stderr == "error: the program 'nft' is missing; install the package nftables\n"
    assert is_clean(pod)


def test_missing_capability_is_named(clean: Callable[[str], Pod]) -> None:
    pod = clean("bare")
    weak = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]

    done = pod.run([*weak, *APPLY, "iptables"], env=OURS, check=False)

    assert done.returncode == 1
    assert "CAP_NET_ADMIN" in done.stderr
    assert is_clean(pod)
