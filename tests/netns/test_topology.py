# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods: reachable over the wire, apart from other runs, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.netns.conftest import APP_PORT, SOCKETS, dial, seen
from ztunnel_py.cli.topology import Mesh, Realm, TopologyError, sweep

if TYPE_CHECKING:
    from ztunnel_py.cli.demo_mesh import Journal

pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_pods_reach_each_other_across_the_wire_with_their_own_address(
    mesh: Mesh, journals: dict[str, Journal], family: str
) -> None:
    client, server = mesh.pod("client"), mesh.pod("server")

    event = dial(client, getattr(server, family), APP_PORT)

    report = seen(journals["server"], event)
    assert report["source"][0] == getattr(client, family)


def test_ipv6_works_at_once() -> None:
    with Mesh({"client": "node-a", "server": "node-b"}) as mesh:
        server = mesh.pod("server")
        argv = [sys.executable, str(SOCKETS), "serve", "--tcp", str(APP_PORT)]
        listening = server.popen(argv, stdout=subprocess.PIPE)
        assert listening.stdout is not None
        listening.stdout.readline()

        assert dial(mesh.pod("client"), server.ipv6, APP_PORT)["answered"] == APP_PORT


def test_two_meshes_at_once_do_not_collide() -> None:
    with Mesh({"client": "node-a"}) as one, Mesh({"client": "node-a"}) as other:
        assert one.pod("client").netns != other.pod("client").netns
        assert one.pod("client").run(["ip", "address"]).stdout != ""
        assert other.pod("client").run(["ip", "address"]).stdout != ""


def test_namespaces_and_programs_are_gone_after_an_error() -> None:
    mesh = Mesh({"client": "node-a"})

    def fail() -> None:
        with mesh:
            mesh.pod("client").popen(["sleep", "60"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    (sleeper,) = mesh.pod("client").programs
    assert sleeper.poll() is not None
    realm = Realm()
    names = realm.run(["ls", "/run/netns"], check=False).stdout.split()
    realm.close()
    assert mesh.pod("client").netns not in names


def test_leftovers_of_dead_runs_are_swept_and_those_of_living_ones_stay() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    realm = Realm()
    dead, alive, foreign = f"zt{ended.pid}-0-pod", f"zt{os.getpid()}-0-pod", f"zt-{os.getpid()}"
    for name in (dead, alive, foreign):
        realm.run(["ip", "netns", "add", name])

    sweep(realm)  # or a mesh that another test builds just now

    left = realm.run(["ls", "/run/netns"]).stdout.split()
    for name in (alive, foreign):
        realm.run(["ip", "netns", "delete", name])
    realm.close()
    assert dead not in left
    assert {alive, foreign} <= set(left)


def test_a_failing_command_says_what_and_where() -> None:
    with (
        Mesh({"client": "node-a"}) as mesh,
        pytest.raises(TopologyError, match=r"ip link set nothing up \(in zt.*-client\) failed"),
    ):
        mesh.pod("client").run(["ip", "link", "set", "nothing", "up"])
