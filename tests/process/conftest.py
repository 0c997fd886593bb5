# SPDX-License-Identifier: Apache-2.0
"""The whole program, run as its users run it, alone in a pod."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.cli.topology import Mesh, NamespacesForbiddenError

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Sequence

    from ztunnel_py.cli.topology import Pod

ROOT = Path(__file__).parents[2]
PROXY = [sys.executable, "-m", "ztunnel_py", "proxy", "ztunnel"]
APPS = Path(__file__).with_name("apps.py")
DEADLINE_S = 10.0
STATE = """
workloads:
  - uid: c//Pod/shop/cart-0
    name: cart-0
    namespace: shop
    serviceAccount: cart
    trustDomain: cluster.local
    workloadName: cart
    canonicalName: cart
    workloadIps: ["{ip}"]
    protocol: HBONE
    services: {{}}
"""


OF_A_NODE: dict[str, str | None] = {
    "PROXY_MODE": "shared",
    "PROXY_WORKLOAD_INFO": None,
    "PACKET_MARK": None,
}
"""Changes of `environment` for the proxy of a node."""


def environment(**changes: str | None) -> dict[str, str]:
    """What a dedicated proxy needs, with changes; None removes a variable."""
    wanted: dict[str, str | None] = {
        "PATH": os.environ["PATH"],
        "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": "shop/cart-0/cart",
        "XDS_ADDRESS": "",
        "FAKE_CA": "true",
        "PACKET_MARK": "1337",
        "ISTIO_META_DNS_CAPTURE": "false",
        **changes,
    }
    return {name: value for name, value in wanted.items() if value is not None}


class Proxy:
    """A running proxy in a pod."""

    def __init__(self, pod: Pod, program: subprocess.Popen[str], log: Path) -> None:
        self._pod = pod
        self.program = program
        self._log = log

    def log(self) -> str:
        """Everything it has printed."""
        return self._log.read_text()

    def events(self) -> list[dict[str, object]]:
        """Its JSON log lines."""
        lines = self.log().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def get(self, port: int, path: str, *options: str) -> subprocess.CompletedProcess[str]:
        """An HTTP request from inside the pod."""
        url = f"http://127.0.0.1:{port}{path}"
        argv = ["curl", "--silent", "--show-error", "--max-time", "5", *options, url]
        return self._pod.run(argv, check=False)

    def metrics(self) -> str:
        """A scrape."""
        return self.get(15020, "/metrics").stdout

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the proxy itself."""
        self.program.send_signal(number)

    def wait_ready(self) -> None:
        """Returns once the proxy says so."""
        self.wait(lambda: self.get(15021, "/healthz/ready").stdout == "ready\n", "readiness")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a condition; fails with the log at the deadline or if the proxy ends."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"waited for {what}:\n{self.log()}"
            time.sleep(0.02)

    def exit_status(self, timeout_s: float = DEADLINE_S) -> int:
        """How it ended, waited for."""
        return self.program.wait(timeout_s)


class Program:
    """A program in a pod that reads lines and prints lines."""

    def __init__(self, pod: Pod, *argv: str) -> None:
        self._popen = subprocess.Popen(
            pod.command([sys.executable, *argv]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def tell(self, line: str) -> None:
        """Gives it a line."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n")
        self._popen.stdin.flush()

    def line(self) -> str:
        """The next line that it prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().rstrip()

    def is_silent(self, seconds: float) -> bool:
        """Whether it prints nothing for so long."""
        assert self._popen.stdout is not None
        return not select.select([self._popen.stdout], [], [], seconds)[0]

    def kill(self) -> None:
        """Ends it."""
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def redirected(pod: Pod, port: int, to_port: int) -> Iterator[None]:
    """Within it, what goes to a port of 127.0.0.1 arrives at another, as captured."""
    match = f"OUTPUT -d 127.0.0.1 -p tcp --dport {port} -j REDIRECT --to-ports {to_port}"
    pod.run(["iptables", "-t", "nat", "-A", *match.split()])
    try:
        yield
    finally:
        pod.run(["iptables", "-t", "nat", "-D", *match.split()])


@pytest.fixture(scope="session")
def pod() -> Iterator[Pod]:
    """A pod of its own; all tests of a worker use it one after the other."""
    try:
        with Mesh({"pod": "node-a"}) as mesh:
            yield mesh.pod("pod")
    except NamespacesForbiddenError as error:
        pytest.skip(f"PROCESS TESTS DO NOT RUN HERE: {error}")


@pytest.fixture
def launch(pod: Pod, tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Starts proxies; they are ended afterwards.

    `ready=False` does not wait for them; `output` says as a shell does where standard output goes.
    """
    started: list[Proxy] = []

    def launch(
        *,
        ready: bool = True,
        argv: Sequence[str] = PROXY,
        output: str = "",
        **changes: str | None,
    ) -> Proxy:
        state = tmp_path / "mesh.yaml"
        state.write_text(STATE.format(ip=pod.ipv4))
        (tmp_path / "run").mkdir(mode=0o700, exist_ok=True)
        log = tmp_path / f"proxy-{len(started)}.log"
        defaults = {"LOCAL_XDS_PATH": str(state), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
        with log.open("w") as out:
            env = environment(**(defaults | changes))
            led = ["sh", "-c", f'exec "$@" {output}', "sh", *argv] if output else argv
            program = pod.popen(led, stdout=out, stderr=out, env=env, cwd=ROOT)
        proxy = Proxy(pod, program, log)
        started.append(proxy)
        if ready:
            proxy.wait_ready()
        return proxy

    yield launch
    for proxy in started:
        if proxy.program.poll() is None:
            proxy.program.kill()
            proxy.program.wait()


@pytest.fixture
def echo(pod: Pod) -> Iterator[int]:
    """An application in the pod that sends back what it gets; its port."""
    port = 9000
    program = pod.popen(
        [sys.executable, str(APPS), "echo", str(port)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    yield port
    program.kill()
    program.wait()
    program.stdout.close()


@pytest.fixture
def programs(pod: Pod) -> Iterator[Callable[..., Program]]:
    """Starts programs in the pod; they are ended afterwards."""
    started: list[Program] = []

    def start(*argv: str) -> Program:
        started.append(Program(pod, *argv))
        return started[-1]

    yield start
    for program in started:
        program.kill()
