# SPDX-License-Identifier: Apache-2.0
"""What many pods in one proxy cost: `python -m bench.inpod [PODS]`, as root, under 2 minutes.

    enrol       from the order to the agent until a new connection of the pod has carried a byte
    snapshot    from the proxy's connection to the agent until it serves all pods and is ready
    memory      what a proxy that is ready grows by (Rss) for each pod that is enrolled then
    descriptors of the proxy, for each pod
    connect     a connection to where there is no mesh, in shared mode as a multiple of dedicated
                mode, by turns: CPU of the proxy, and p50 until the last byte

Namespaces, rules, agent and proxies are real; the kernel's own memory is not counted. Ends with 1
if a goal is missed.
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import gauges
from bench.compare import build
from bench.lane import ECHO_PORT, ONCE_PORT, PROGRAMS, last_words
from ztunnel_py import netns
from ztunnel_py.agent import control
from ztunnel_py.cli.topology import NETNS_DIR, REPOSITORY, Mesh, stop
from ztunnel_py.netns import open_socket

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from ztunnel_py.cli.topology import Namespace, Pod

PODS = 250
ENROLMENTS = 40
CONNECTIONS = 3_000
TURNS = 5
PATIENCE_S = 20.0
OURS = [sys.executable, "-m", "ztunnel_py"]
READINESS_PORT = 15021
STATE = """
workloads:
- {{uid: Kubernetes//Pod/bench/client, name: client, namespace: bench, serviceAccount: client,
   workloadIps: ["{client}"], node: node-a, services: {{}}}}
- {{uid: Kubernetes//Pod/bench/lone, name: lone, namespace: bench, serviceAccount: lone,
   workloadIps: ["{lone}"], node: node-a, services: {{}}}}
"""


class Row(NamedTuple):
    """One line of what is printed."""

    name: str
    value: float
    unit: str
    goal: float
    note: str = ""

    def __str__(self) -> str:
        """For people."""
        sign = "met" if self.value <= self.goal else "MISSED"
        value = f"{self.value:8.2f} {self.unit:4} goal {self.goal:g}"
        return f"{self.name:28} {value}  {sign}  {self.note}"


class Node:
    """One node: its agent, its proxies, and a pod beside one that answers."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.space = mesh.node("node-a")
        self.pod, self.lone, self._server = map(mesh.pod, ("client", "lone", "server"))
        self._folder = folder
        state = STATE.format(client=self.pod.ipv4, lone=self.lone.ipv4)
        (folder / "mesh.yaml").write_text(state)
        sink = [str(PROGRAMS / "sink"), f"{ECHO_PORT}:echo", f"{ONCE_PORT}:once"]
        self._server.popen(sink)

    @contextmanager
    def agent(self) -> Iterator[Path]:
        """An agent that runs; where it takes orders."""
        path = self._folder / "agent.sock"
        argv = [*OURS, "agent", "--control", str(path), "--zds", str(self._zds)]
        with self._running(self.space, [*argv, "--state", str(self._folder / "pods.json")], {}):
            _await(path.exists)
            yield path

    @contextmanager
    def proxy(self, mode: str) -> Iterator[subprocess.Popen[str]]:
        """A proxy that runs; a dedicated one in a pod of its own."""
        env = {
            "PROXY_MODE": mode,
            "NODE_NAME": "node-a",
            "XDS_ADDRESS": "",
            "FAKE_CA": "true",
            "LOCAL_XDS_PATH": str(self._folder / "mesh.yaml"),
            "INPOD_UDS": str(self._zds),
            "ZTUNNEL_WORKER_THREADS": "2",
        }
        place = self.space
        if mode == "dedicated":
            place = self.lone
            env |= {"PROXY_WORKLOAD_INFO": "bench/lone/lone", "PACKET_MARK": "1337"}
        with self._running(place, [*OURS, "proxy"], env) as program:
            yield program

    def log(self) -> str:
        """What the programs have said."""
        return (self._folder / "log").read_text()

    def is_ready(self) -> bool:
        """Whether the shared proxy says so."""
        with suppress(OSError), open_socket(_netns(self.space), *TCP) as sock:
            sock.settimeout(1)
            sock.connect(("127.0.0.1", READINESS_PORT))
            sock.sendall(b"GET /healthz/ready HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(64)
        return False

    def carry_byte(self, pod: Pod) -> None:
        """A connection of a pod carries a byte each way.

        Raises:
            OSError: it does not.
        """
        with open_socket(_netns(pod), *TCP) as sock:
            sock.settimeout(1)
            sock.connect((self._server.ipv4, ECHO_PORT))
            sock.sendall(b"x")
            if sock.recv(1) != b"x":
                raise ConnectionError("the proxy closed the connection")

    def connect(self, pod: Pod) -> float:
        """A connection of a pod that its server closes; seconds."""
        began = time.perf_counter()
        with open_socket(_netns(pod), *TCP) as sock:
            sock.settimeout(5)
            sock.connect((self._server.ipv4, ONCE_PORT))
            sock.sendall(b"x")
            while sock.recv(16):
                pass
        return time.perf_counter() - began

    @property
    def _zds(self) -> Path:
        return self._folder / "zds.sock"

    @contextmanager
    def _running(
        self, space: Namespace, argv: Sequence[str], env: dict[str, str]
    ) -> Iterator[subprocess.Popen[str]]:
        with (self._folder / "log").open("a") as log:
            program = space.popen(argv, stdout=log, stderr=log, env=env, cwd=REPOSITORY)
        try:
            yield program
        finally:
            stop([program])


TCP = (socket.AF_INET, socket.SOCK_STREAM)


def main(argv: Sequence[str]) -> int:
    """Prints a line per measure."""
    if os.geteuid() != 0:
        print("error: this needs root: it makes many namespaces", file=sys.stderr)
        return 1
    n_pods = int(argv[0]) if argv else PODS
    build()
    with ExitStack() as stack:
        mesh = stack.enter_context(Mesh(dict.fromkeys(("client", "lone", "server"), "node-a")))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = Node(mesh, folder)
        paths = stack.enter_context(spaces(n_pods))
        rows = []
        try:
            for row in itertools.chain(
                measure_enrolment(node), measure_pods(node, paths), compare(node)
            ):
                rows.append(row)
                print(row, flush=True)
        except (TimeoutError, control.AbsentError) as error:
            print(f"error: {error}; {last_words(node.log())}", file=sys.stderr)
            return 1
    return int(any(row.value > row.goal for row in rows))


def measure_enrolment(node: Node) -> Iterator[Row]:
    """Enrols the same pod again and again; between, it has its plain network."""
    took = []
    with node.agent() as agent, node.proxy("shared"):
        _await(lambda: control.command(agent, "enrolled")["proxies"] == 1)
        for _ in range(ENROLMENTS):
            began = time.perf_counter()
            _enroll(agent, "client", _path(node.pod))
            node.carry_byte(node.pod)
            took.append(time.perf_counter() - began)
            control.command(agent, "unenroll", {"uid": "bench/client"})
    took.sort()
    note = f"p90 {took[int(len(took) * 0.9)] * 1e3:.1f}, of {ENROLMENTS}"
    yield Row("enrol, p50", statistics.median(took) * 1e3, "ms", 40, note)


def measure_pods(node: Node, paths: Sequence[str]) -> Iterator[Row]:
    """Enrols many pods with one proxy, then starts another."""
    n = len(paths)
    with node.agent() as agent:
        with node.proxy("shared") as proxy:
            _await(node.is_ready)
            _enroll(agent, "pod-0", paths[0])
            before, files = gauges.memory(proxy.pid).resident, _files(proxy.pid)
            for i, path in enumerate(paths[1:], start=1):
                _enroll(agent, f"pod-{i}", path)
            grown = gauges.memory(proxy.pid).resident - before
            more = (_files(proxy.pid) - files) / (n - 1)
            allowed = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[0]
            budget = (
                f"{files} without pods, {allowed} allowed: {(allowed - files) / more:,.0f} pods"
            )
        with node.proxy("shared"):
            _await(lambda: control.command(agent, "enrolled")["proxies"] == 1, 0.001)
            began = time.perf_counter()
            _await(node.is_ready, 0.001)
            took = time.perf_counter() - began
        for i in range(n):
            control.command(agent, "unenroll", {"uid": f"bench/pod-{i}"})
    yield Row(f"snapshot of {n}", took, "s", 5 * n / PODS)
    yield Row("memory of a pod", grown / (n - 1) / 1024, "KiB", 96)
    yield Row("descriptors of a pod", more, "", 10, budget)


def compare(node: Node) -> Iterator[Row]:
    """Connections past the mesh, by turns."""
    cpu: dict[str, list[float]] = {"shared": [], "dedicated": []}
    p50: dict[str, list[float]] = {"shared": [], "dedicated": []}
    node.lone.enrol()
    for _ in range(TURNS):
        with node.agent() as agent, node.proxy("shared") as proxy:
            _await(lambda: control.command(agent, "enrolled")["proxies"] == 1)
            _enroll(agent, "client", _path(node.pod))
            _connect(node, node.pod, proxy, cpu["shared"], p50["shared"])
            control.command(agent, "unenroll", {"uid": "bench/client"})
        with node.proxy("dedicated") as proxy:
            _await(lambda: _succeeds(lambda: node.carry_byte(node.lone)))
            _connect(node, node.lone, proxy, cpu["dedicated"], p50["dedicated"])
    for name, values, unit in (("CPU", cpu, 1e6), ("p50", p50, 1e6)):
        ratios = [a / b for a, b in zip(values["shared"], values["dedicated"], strict=True)]
        note = (
            f"{min(ratios):.2f} to {max(ratios):.2f}; "
            f"dedicated {statistics.median(values['dedicated']) * unit:.0f} us"
        )
        yield Row(f"connect, {name}", statistics.median(ratios), "x", 1.1, note)


def _connect(
    node: Node, pod: Pod, proxy: subprocess.Popen[str], cpu: list[float], p50: list[float]
) -> None:
    for _ in range(200):
        node.connect(pod)
    before = gauges.cpu_s(proxy.pid)
    took = [node.connect(pod) for _ in range(CONNECTIONS)]
    cpu.append((gauges.cpu_s(proxy.pid) - before) / CONNECTIONS)
    p50.append(statistics.median(took))


@contextmanager
def spaces(count: int) -> Iterator[list[str]]:
    """Network namespaces with nothing but `lo`."""
    names = [f"zt{os.getpid()}-pod-{i}" for i in range(count)]
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        yield [f"{NETNS_DIR}/{name}" for name in names]
    finally:
        for name in names:
            with suppress(OSError):
                _ip("netns", "delete", name)


def _enroll(agent: Path, name: str, path: str) -> None:
    names = {"PodName": name, "PodNamespace": "bench", "ServiceAccount": name}
    control.command(agent, "cmdadd", {**names, "Netns": path})


def _ip(*arguments: str) -> None:
    if os.spawnvp(os.P_WAIT, "ip", ["ip", *arguments]) != 0:
        raise OSError(f"ip {' '.join(arguments)} failed")


def _path(space: Namespace) -> str:
    return f"{NETNS_DIR}/{space.netns}"


def _netns(space: Namespace) -> netns.Netns:
    return netns.at(_path(space))


def _files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _await(condition: Callable[[], bool], pause_s: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a program did not become ready")
        time.sleep(pause_s)


def _succeeds(action: Callable[[], None]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
