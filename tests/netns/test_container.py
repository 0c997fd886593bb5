# SPDX-License-Identifier: Apache-2.0
"""The proxy in a container as the manifests describe it: of this machine's files, and the image's.

The image's is looked for in the folder that ZTUNNEL_IMAGE_ROOT names; `make image` does all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml

from tests.netns.mesh_state import NAMESPACE, wait, workload
from tests.netns.node import Agent
from tests.process.conftest import ROOT, Program
from tests.support.container import Container
from ztunnel_py import __version__
from ztunnel_py.cli.topology import Mesh, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.cli.topology import Pod

ISTIOD = "istiod.istio-system.svc"
TOKEN = "of-the-service-account"
CAPABILITY_BITS = {"net_admin": 12, "net_raw": 13, "sys_admin": 21}
"""Source: linux/capability.h."""
EXIT_S = 15.0


class Files(NamedTuple):
    """A file system to run from."""

    root: Path
    program: str
    visible: tuple[Path, ...] = ()


class Running(NamedTuple):
    """A container."""

    pod: Pod
    container: Container
    program: subprocess.Popen[str]
    log: Path
    agent: Agent

    @property
    def pid(self) -> int:
        """Of the first process inside."""
        children = Path(f"/proc/{self.program.pid}/task/{self.program.pid}/children")
        return int(children.read_text())

    def status(self, field: str) -> str:
        """A line of the first process's status (proc(5))."""
        lines = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{field}:\s*(.*)$", lines, re.M)
        assert found is not None
        return found[1]

    def get(self, port: int, path: str, host: str = "127.0.0.1") -> str:
        """The answer to an HTTP request in the pod; empty if there is none."""
        url = f"http://{host}:{port}{path}"
        return self.pod.run(["curl", "-s", "--max-time", "5", url], check=False).stdout


@pytest.fixture(
    params=[pytest.param("this machine", marks=pytest.mark.spec("ops-115")), "the image"]
)
def files(request: pytest.FixtureRequest, namespaces: None) -> Files:
    """Both file systems."""
    if os.geteuid() != 0:
        pytest.skip("CONTAINERS DO NOT RUN HERE: only root builds them")
    if request.param == "this machine":
        proxy = Path(sys.executable).parent / "ztunnel-py"
        return Files(Path("/"), str(proxy), (ROOT,))
    root = os.environ.get("ZTUNNEL_IMAGE_ROOT")
    if root is None:
        pytest.skip("there is no image: `make image` builds it and runs this")
    return Files(Path(root).absolute(), "/usr/local/bin/ztunnel")


@pytest.fixture
def running(files: Files, tmp_path: Path) -> Iterator[Running]:
    """The DaemonSet's container in a pod, with a control plane and an agent that serves cart."""
    objects = yaml.safe_load_all((ROOT / "deploy/manifests/ztunnel.yaml").read_text())
    (pod_spec,) = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "DaemonSet"]
    names = [volume["name"] for volume in pod_spec["volumes"]]
    volumes = {name: tmp_path / name for name in names}
    place = tmp_path / "root"
    for folder in (place, *volumes.values()):
        folder.mkdir()
    (volumes["istio-token"] / "istio-token").write_text(TOKEN)
    with Mesh({"ztunnel": "node-a", "cart": "node-a"}) as mesh, contextlib.ExitStack() as stack:
        pod = mesh.pod("ztunnel")
        state = tmp_path / "mesh.yaml"
        known = [workload(mesh.pod("cart"), node="node-a"), workload(pod, node="node-a")]
        state.write_text(json.dumps({"workloads": known}))
        istiod = ["-m", "tests.support.istiod", str(state), str(volumes["istiod-ca-cert"])]
        options = ["--port", "15012", "--name", ISTIOD, "--token", TOKEN]
        control = Program(pod, *istiod, *options)
        stack.callback(control.kill)
        assert control.line()
        agent = Agent(mesh.node("node-a"), volumes["cni-ztunnel-sock-dir"] / "ztunnel.sock")
        stack.callback(agent.stop)
        fields = {
            "metadata.name": "ztunnel-0",
            "metadata.namespace": NAMESPACE,
            "spec.nodeName": "node-a",
            "spec.serviceAccountName": pod_spec["serviceAccountName"],
            "status.podIP": pod.ipv4,
        }
        container = Container(pod_spec, fields, volumes, {ISTIOD: "127.0.0.1"})
        argv = container.command([files.program], files.root, place, files.visible)
        log = tmp_path / "log"
        with log.open("w") as out:
            program = pod.popen(argv, stdout=out, stderr=out)
        stack.callback(stop, [program])
        agent.meet()
        assert agent.add(mesh.pod("cart")) == ""
        yield Running(pod, container, program, log, agent)


def test_container_of_the_manifests_becomes_ready_and_ends_in_order(running: Running) -> None:
    probe = running.container.spec["readinessProbe"]["httpGet"]
    at = (probe["port"], probe["path"], running.pod.ipv4)

    wait(lambda: running.get(*at) == "ready\n", f"readiness; it logs to {running.log}")
    bits = sum(1 << CAPABILITY_BITS[name] for name in running.container.capabilities())
    assert int(running.status("CapEff"), 16) == int(running.status("CapBnd"), 16) == bits
    assert running.status("Uid").split() == ["0"] * 4
    assert running.status("Gid").split() == ["1337"] * 4
    mounts = Path(f"/proc/{running.pid}/mounts").read_text()
    assert re.search(r"^\S+ / \S+ ro[,\s]", mounts, re.M), mounts

    def served() -> set[str]:
        dump = json.loads(running.get(15000, "/config_dump"))
        return {c["identity"] for c in dump["certificates"] if c["state"] == "Available"}

    cart = f"spiffe://cluster.local/ns/{NAMESPACE}/sa/cart"
    wait(lambda: cart in served(), "a certificate for the pod that is served")

    os.kill(running.pid, signal.SIGTERM)
    assert running.program.wait(EXIT_S) == 0
    assert running.agent.order("ack") == {"end": True}


@pytest.mark.parametrize("files", ["the image"], indirect=True)
def test_image_has_openssl_3_5_and_answers_to_the_name_of_ztunnel(files: Files) -> None:
    def run(*argv: str) -> str:
        command = ["chroot", str(files.root), *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    version = run("/usr/local/bin/ztunnel", "version")
    openssl = run("/opt/ztunnel-py/bin/python", "-c", "import ssl; print(ssl.OPENSSL_VERSION)")

    assert f'Version:"{__version__}"' in version
    assert openssl.startswith("OpenSSL 3.5.")
