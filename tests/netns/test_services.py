# SPDX-License-Identifier: Apache-2.0
"""The proxy and the agent of a machine without Kubernetes, with the rights of their units."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.netns.mesh_state import APP_PORT, NAMESPACE, Caller, PodMesh, wait, workload
from tests.process.conftest import OF_A_NODE, PROXY, ROOT, environment
from tests.support import units
from ztunnel_py.cli.topology import stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OURS = [sys.executable, "-m", "ztunnel_py"]
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.fixture
def mesh(namespaces: None, tmp_path: Path) -> Iterator[PodMesh]:
    """A node with two pods, both with an application."""
    with PodMesh({"web": "node-a", "shelf": "node-a"}, tmp_path) as mesh:
        if not mesh.mesh.realm.is_root:
            pytest.skip("SERVICES DO NOT RUN HERE: only root starts them")
        mesh.know([workload(pod) for pod in mesh.mesh.pods.values()])
        mesh.run_app("shelf", "--echo", str(APP_PORT))
        yield mesh


@pytest.mark.parametrize("backend", ["iptables", "legacy", "nft"])
def test_services_serve_pods_of_anybody(mesh: PodMesh, backend: str) -> None:
    node, zds, control = (
        mesh.mesh.node("node-a"),
        mesh.folder / "zds.sock",
        mesh.folder / "agent.sock",
    )

    def ask(command: str, *arguments: str) -> dict[str, Any]:
        argv = ["env", "-C", str(ROOT), *OURS, command, *arguments, "--control", str(control)]
        return dict(json.loads(node.run([*argv, "--json"]).stdout))

    env = environment(
        **OF_A_NODE,
        NODE_NAME="node-a",
        INPOD_UDS=str(zds),
        LOCAL_XDS_PATH=str(mesh.folder / "mesh.yaml"),
        LOG_FORMAT="json",
    )
    options = ["--backend", backend, "--zds", str(zds), "--control", str(control)]
    state = ["--state", str(mesh.folder / "pods.json")]
    proxy = node.popen([*units.rights("ztunnel-py.service"), *PROXY], env=env, cwd=ROOT)
    agent = node.popen(
        [*units.rights("ztunnel-py-agent.service"), *OURS, "agent", *options, *state], cwd=ROOT
    )
    try:
        wait(control.exists, "the agent")
        wait(lambda: ask("enrolled")["proxies"] == 1, "the proxy")
        for name in ("web", "shelf"):
            pod = mesh.pod(name)
            program = pod.popen(
                [*NOBODY, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
            )
            assert program.stdout is not None
            program.stdout.readline()  # it is in its namespace, and nobody's
            program.stdout.close()
            who = ["--namespace", NAMESPACE, "--service-account", name]
            assert ask("enroll", f"{name}-0", "--pid", str(program.pid), *who)["problem"] == ""

        caller = Caller(mesh.pod("web"))
        with caller.call(mesh.pod("shelf").ipv4) as call:
            assert call.greeting() == f"shelf:{APP_PORT}"
        caller.stop()
        observer = Caller(node)
        wait(lambda: 'security_policy="mutual_tls"' in observer.get(15020, "/metrics"), "mTLS")
        observer.stop()
    finally:
        stop([agent, proxy])
