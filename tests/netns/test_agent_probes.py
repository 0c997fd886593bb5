# SPDX-License-Identifier: Apache-2.0
"""Our agent lets health checks of its machine pass by the proxy, if it is asked to."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.netns.mesh_state import APP_PORT, NAMESPACE, Caller, PodMesh, wait, workload
from tests.process.conftest import OF_A_NODE, PROXY, ROOT, environment
from ztunnel_py.cli.topology import NETNS_DIR, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OURS = [sys.executable, "-m", "ztunnel_py"]
PROBE = "169.254.7.127"


@pytest.fixture
def mesh(namespaces: None, tmp_path: Path) -> Iterator[PodMesh]:
    """A node with one pod."""
    with PodMesh({"web": "node-a"}, tmp_path) as mesh:
        mesh.know([workload(mesh.pod("web"))])
        mesh.run_app("web", "--echo", str(APP_PORT))
        yield mesh


@pytest.mark.parametrize("backend", ["iptables", "legacy"])
def test_health_checks_pass_while_a_pod_is_enrolled(mesh: PodMesh, backend: str) -> None:
    node, pod = mesh.mesh.node("node-a"), mesh.pod("web")
    control, zds = mesh.folder / "agent.sock", mesh.folder / "zds.sock"

    def command(*arguments: str) -> dict[str, Any]:
        """One command to the agent; what it says."""
        argv = ["env", "-C", str(ROOT), *OURS, *arguments, "--control", str(control)]
        text = node.run(argv).stdout
        return dict(json.loads(text)) if "--json" in arguments else {}

    def source() -> str:
        """Whom the application sees when the node calls."""
        caller = Caller(node)
        try:
            with caller.call(pod.ipv4) as call:
                assert call.greeting() == f"web:{APP_PORT}"
        finally:
            caller.stop()
        return str(mesh.apps["web"].events()[-1]["source"][0])

    plain = source()
    agent_argv = [*OURS, "agent", "--probes", "--backend", backend, "--control", str(control)]
    state = mesh.folder / "pods.json"
    agent = node.popen([*agent_argv, "--zds", str(zds), "--state", str(state)], cwd=ROOT)
    env = environment(
        **OF_A_NODE,
        NODE_NAME="node-a",
        INPOD_UDS=str(zds),
        LOCAL_XDS_PATH=str(mesh.folder / "mesh.yaml"),
    )
    proxy = node.popen(PROXY, env=env, cwd=ROOT)
    try:
        wait(control.exists, "the agent")
        wait(lambda: command("enrolled", "--json")["proxies"] == 1, "the proxy")
        where = ["--netns", f"{NETNS_DIR}/{pod.netns}", "--namespace", NAMESPACE]
        found = command("enroll", "web-0", *where, "--service-account", "web", "--json")
        assert found["problem"] == ""
        assert source() == PROBE

        command("unenroll", "web-0", "--namespace", NAMESPACE)
        assert source() == plain
    finally:
        stop([agent, proxy])
    tool = "iptables-legacy-save" if backend == "legacy" else "iptables-nft-save"
    assert "ISTIO_POSTRT" not in node.run([tool]).stdout
