# SPDX-License-Identifier: Apache-2.0
"""What a node does for the kubelet's probes, and what that does to traffic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.netns.conftest import APP_PORT, IPTABLES, OURS, dial, seen
from tests.netns.test_redirection import program
from ztunnel_py.cli.topology import TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ztunnel_py.cli.demo_mesh import Journal
    from ztunnel_py.cli.topology import Mesh, Namespace, Pod

PROGRAM = Path(__file__).with_name("probe_rules.py")
PROBE = {"ipv4": "169.254.7.127", "ipv6": "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"}
JUMP = ["POSTROUTING", "-p", "tcp", "-j", "ACCEPT"]


class Node:
    """A node with rules of one kind of programs."""

    def __init__(self, space: Namespace, backend: str) -> None:
        self.space = space
        self.backend = backend

    def do(self, *arguments: str) -> Any:
        """Runs the program and returns what it prints."""
        argv = [sys.executable, str(PROGRAM), self.backend, *arguments]
        return json.loads(self.space.run(argv, env=OURS).stdout)


@pytest.fixture
def node(mesh: Mesh, backend: str) -> Iterator[Node]:
    """The client's node with fresh rules, and clean afterwards."""
    node = Node(mesh.node("node-a"), backend)
    node.do("create")
    yield node
    node.do("delete")


@pytest.mark.spec("redir-42")
@pytest.mark.parametrize("family", PROBE)
def test_probe_of_the_node_passes_and_what_it_forwards_does_not(
    mesh: Mesh,
    journals: dict[str, Journal],
    clean: Callable[[str], Pod],
    node: Node,
    family: str,
) -> None:
    pod, address = clean("client"), getattr(mesh.pod("client"), family)
    pod.enrol(backend=node.backend)
    node.do("add", "uid-1", address)

    probe = dial(node.space, address, APP_PORT)
    forwarded = dial(mesh.pod("bare"), address, APP_PORT)

    assert probe["answered"] == APP_PORT
    report = journals["client"].wait(lambda e: e.get("source", [0])[0] == PROBE[family])
    assert report is not None
    assert forwarded["answered"] == 15006
    assert seen(journals["client"], forwarded)["source"][0] == getattr(mesh.pod("bare"), family)


def test_probe_of_a_pod_that_is_not_enrolled_keeps_its_source(
    mesh: Mesh, journals: dict[str, Journal], node: Node
) -> None:
    node.do("add", "uid-1", mesh.pod("client").ipv4)

    event = dial(node.space, mesh.pod("bare").ipv4, APP_PORT)

    assert seen(journals["bare"], event)["source"] == event["local"]


@pytest.mark.spec("redir-47")
@pytest.mark.parametrize("iptables", IPTABLES)
def test_jump_is_the_first_and_the_rule_asks_for_socket_protocol_and_address(
    mesh: Mesh, iptables: str
) -> None:
    node = Node(mesh.node("node-b"), iptables)
    table = [program("iptables", iptables), "-t", "nat"]
    node.do("create")
    node.space.run([*table, "-I", *JUMP])

    node.do("create")

    found = node.space.run([*table, "-S"]).stdout.splitlines()
    node.do("delete")
    node.space.run([*table, "-D", *JUMP])
    assert [line for line in found if line.startswith("-A ")] == [
        "-A POSTROUTING -j ISTIO_POSTRT",
        "-A POSTROUTING -p tcp -j ACCEPT",
        "-A ISTIO_POSTRT -p tcp -m owner --socket-exists -m set"
        " --match-set istio-inpod-probes-v4 dst -j SNAT --to-source 169.254.7.127",
    ]


@pytest.mark.spec("redir-48")
@pytest.mark.parametrize("address", ["10.9.0.1", "fd09::1"])
def test_address_that_another_pod_has_taken_over_stays(node: Node, address: str) -> None:
    node.do("add", "uid-a", address)
    node.do("add", "uid-b", address)

    assert node.do("entries") == {address: "uid-b"}
    assert node.do("remove", "uid-a", address) is False
    assert node.do("entries") == {address: "uid-b"}
    assert node.do("remove", "uid-b", address) is True
    assert node.do("remove", "uid-b", address) is False
    assert node.do("entries") == {}


def test_mapped_address_is_one_of_ipv4(node: Node) -> None:
    node.do("add", "uid-a", "::ffff:10.9.0.1")

    assert node.do("entries") == {"10.9.0.1": "uid-a"}
    assert node.do("remove", "uid-a", "::ffff:10.9.0.1") is True


@pytest.mark.spec("redir-49")
def test_unknown_entries_go_unless_a_pod_has_no_address(node: Node) -> None:
    node.do("add", "uid-gone", "10.9.0.9")

    node.do("fill", "uid-a=10.9.0.1,fd09::1", "uid-b=")
    kept = node.do("entries")
    node.do("fill", "uid-a=10.9.0.1,fd09::1", "uid-b=10.9.0.2")
    pruned = node.do("entries")

    assert kept == {"10.9.0.1": "uid-a", "fd09::1": "uid-a", "10.9.0.9": "uid-gone"}
    assert pruned == {"10.9.0.1": "uid-a", "fd09::1": "uid-a", "10.9.0.2": "uid-b"}


@pytest.mark.spec("redir-50")
def test_rules_outlive_the_program_until_they_are_deleted(mesh: Mesh, backend: str) -> None:
    node = Node(mesh.node("node-b"), backend)
    node.do("create")
    node.do("add", "uid-a", "10.9.0.1")

    assert node.do("entries") == {"10.9.0.1": "uid-a"}
    node.do("delete")
    node.do("delete")

    left = node.space.run(["nft", "list", "ruleset"]).stdout
    for iptables in IPTABLES:
        left += node.space.run([f"{program('iptables', iptables)}-save"]).stdout
    assert "istio" not in left.lower()
    with pytest.raises(TopologyError, match="No such file"):
        node.do("entries")


def test_start_empties_the_set(node: Node) -> None:
    node.do("add", "uid-a", "10.9.0.1")

    node.do("create")

    assert node.do("entries") == {}


@pytest.mark.spec("redir-23")
def test_ipset_of_the_node_makes_it_keep_to_iptables(
    mesh: Mesh, clean: Callable[[str], Pod]
) -> None:
    pod, node = clean("bare"), Node(mesh.node("node-a"), "iptables-nft")
    node.do("create")

    done = pod.redirect("apply", backend="nft", where=node.space)

    node.do("delete")
    assert "nftables is used after a reboot" in done.stderr
    assert "ISTIO_PRERT" in pod.run(["iptables-nft-save"]).stdout
    assert "istio-ambient" not in pod.run(["nft", "list", "ruleset"]).stdout
