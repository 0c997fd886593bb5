# SPDX-License-Identifier: Apache-2.0
"""Nodes in shared mode: one proxy each, and an agent that tells it of pods."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from tests.netns.mesh_state import NAMESPACE, Caller, Proxy, awaited
from tests.process.conftest import OF_A_NODE, PROXY, ROOT, environment
from tests.support import cni
from ztunnel_py.cli.topology import NETNS_DIR, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.mesh_state import PodMesh
    from ztunnel_py.cli.topology import Namespace, Pod


class Agent:
    """The program that plays the CNI agent of a node; see tests/support/cni.py."""

    def __init__(self, node: Namespace, path: Path) -> None:
        self._program = subprocess.Popen(
            node.command(["env", "-C", str(ROOT), sys.executable, "-m", cni.__name__, str(path)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert self._answer() == {"event": "ready"}

    def order(self, do: str, **arguments: object) -> dict[str, Any]:
        """One order and what came of it."""
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._program.stdin.flush()
        return self._answer()

    def ack(self) -> str:
        """What the proxy says went wrong."""
        return str(self.order("ack")["ack"])

    def meet(self) -> None:
        """A proxy connects, and there are no pods yet."""
        self.order("accept")
        self.order("snapshot")
        assert self.ack() == ""

    def add(self, pod: Pod, uid: str = "") -> str:
        """Names a pod; what the proxy says."""
        info = [f"{pod.name}-0", NAMESPACE, pod.name]
        self.order("add", uid=uid or pod.name, info=info, netns=[f"{NETNS_DIR}/{pod.netns}"])
        return self.ack()

    def delete(self, uid: str) -> str:
        """A pod is gone; what the proxy says."""
        self.order("delete", uid=uid)
        return self.ack()

    def stop(self) -> None:
        """Ends the program."""
        self._program.kill()
        self._program.wait()
        for pipe in (self._program.stdin, self._program.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self) -> dict[str, Any]:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        assert line, "the agent has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


class Node:
    """A node of a mesh with its agent; proxies are started by the test."""

    def __init__(self, mesh: PodMesh, name: str, space: Namespace | None = None) -> None:
        """The node `name`; its proxy lives in its namespace, or in `space`."""
        self.name = name
        self.space = space or mesh.mesh.node(name)
        self._folder = mesh.folder
        self._name = f"{name}-{secrets.token_hex(3)}"
        self._socket = mesh.folder / f"{self._name}.sock"
        self.agent = Agent(self.space, self._socket)
        self._proxies: list[Proxy] = []
        self._callers: list[Caller] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.stop()
        stop([proxy.program for proxy in self._proxies])
        for caller in self._callers:
            caller.stop()

    def start(self, *prefix: str, **changes: str) -> Proxy:
        """Starts a proxy in the node's own namespace, by a program in front of it."""
        log = self._folder / f"{self._name}-{len(self._proxies)}.log"
        env = environment(
            **{
                **OF_A_NODE,
                "NODE_NAME": self.name,
                "INPOD_UDS": str(self._socket),
                "LOCAL_XDS_PATH": str(self._folder / "mesh.yaml"),
                "FAKE_CA_ROOT_CERT": str(self._folder / "root.pem"),
                "FAKE_CA_ROOT_KEY": str(self._folder / "root.key"),
                "LOG_FORMAT": "json",
                **changes,
            }
        )
        with log.open("w") as out:
            program = self.space.popen([*prefix, *PROXY], stdout=out, stderr=out, env=env, cwd=ROOT)
        caller = Caller(self.space)
        self._callers.append(caller)
        self._proxies.append(Proxy(caller, program, log))
        return self._proxies[-1]

    def serve(self, *pods: Pod, enrol: tuple[str, ...] = (), **changes: str) -> Proxy:
        """Starts a proxy and names pods to it, enrolled so; returns when it is ready."""
        proxy = self.start(**changes)
        self.agent.meet()
        for pod in pods:
            assert self.agent.add(pod) == ""
            pod.enrol(*enrol)
        awaited(proxy.journal, proxy.program, "message", "marking server ready")
        return proxy
