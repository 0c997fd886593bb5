# SPDX-License-Identifier: Apache-2.0
"""What a large push does to connections that exist: `python -m bench.xds_traffic`, two minutes.

64 connections past the mesh make 4,000 round trips a second through a proxy, without a push and
while 76,000 resources come. Printed: p50 and p99 of both, and their ratio; the goal is 1.5.

Then new connections are made while 1,000 workloads change each second: printed is how many were
decided from the cache.

All share the machine's cores. The control plane, which would have a machine of its own, is the one
that waits.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import decide_mesh
from bench.compare import build
from bench.lane import ECHO_PORT, ONCE_PORT, PROGRAMS, start
from bench.xds_server import CHURN_S
from ztunnel_py.cli.topology import REPOSITORY, Mesh, stop

if TYPE_CHECKING:
    from ztunnel_py.cli.topology import Pod

CONNECTIONS, RATE, SECONDS, TURNS = 64, 4_000, 4, 9
GOAL = 1.5
READY_S = 20.0


class Run:
    """A proxy in a pod with a control plane beside it, and a pod that answers."""

    def __init__(self, client: Pod, server: Pod, folder: Path) -> None:
        self._client, self._server = client, server
        argv = [sys.executable, "-m", "bench.xds_server", str(folder)]
        self._control = subprocess.Popen(
            client.command(["nice", "-n", "19", "env", "-C", str(REPOSITORY), *argv]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        info = decide_mesh.pod(0, False).workload
        env = {
            "PROXY_MODE": "dedicated",
            "PROXY_WORKLOAD_INFO": f"{info.namespace}/{info.name}/{info.service_account}",
            "PACKET_MARK": "1337",
            "XDS_ADDRESS": self._said(),
            "XDS_ROOT_CA": str(folder / "root-cert.pem"),
            "FAKE_CA": "true",
            "ZTUNNEL_WORKER_THREADS": "2",
        }
        with (folder / "log").open("w") as log:
            self._proxy = start(client, [sys.executable, "-m", "ztunnel_py"], env=env, output=log)
        self.order("first")

    def order(self, what: str) -> None:
        """Has the control plane do something, to its end."""
        self.begin(what)
        self.wait()

    def begin(self, what: str) -> None:
        """Has it begin."""
        assert self._control.stdin is not None
        self._control.stdin.write(f"{what}\n")
        self._control.stdin.flush()

    def wait(self) -> None:
        """Returns when it has done that."""
        assert self._said(), "the control plane ended"

    def pulse(self, seconds: float) -> dict[str, float]:
        """What the connections saw."""
        return pulse(self._client, self._server, seconds)

    def hit_rate(self) -> float:
        """The share of new connections that was decided from the cache while workloads changed."""
        before = self._events()
        self.begin("churn")
        numbers = map(str, (ONCE_PORT, CONNECTIONS, CHURN_S * 1000))
        argv = [str(PROGRAMS / "load"), "connect", self._server.ipv4, *numbers]
        self._client.run(argv, timeout_s=2 * CHURN_S)
        self.wait()
        hits, misses = (now - then for now, then in zip(self._events(), before, strict=True))
        return hits / (hits + misses)

    def _events(self) -> tuple[int, ...]:
        """Answers of the cache so far: hits, misses."""
        text = self._client.run(["curl", "-s", "http://localhost:15020/metrics"]).stdout
        series = (f'ztunnel_py_events_total{{event="flow_{what}"}} ' for what in ("hit", "miss"))
        return tuple(int(text.partition(one)[2].split(maxsplit=1)[0]) for one in series)

    def await_ready(self) -> None:
        """Returns when a connection passes."""
        await_passing(self._client, self._server, READY_S)

    def end(self) -> None:
        """Ends the programs."""
        self._control.kill()
        stop([self._proxy, self._control])

    def _said(self) -> str:
        assert self._control.stdout is not None
        return self._control.stdout.readline().strip()


def pulse(client: Pod, server: Pod, seconds: float) -> dict[str, float]:
    """What connections between two pods saw."""
    numbers = map(str, (ECHO_PORT, CONNECTIONS, round(seconds * 1000), RATE))
    argv = [str(PROGRAMS / "load"), "pulse", server.ipv4, *numbers]
    printed: dict[str, float] = json.loads(client.run(argv, timeout_s=60).stdout)
    return printed


def await_passing(client: Pod, server: Pod, seconds: float) -> None:
    """Returns when connections between two pods pass; raises what they failed with."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            pulse(client, server, 0.1)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def main() -> int:
    """Prints a line per turn; returns 1 if the goal is missed."""
    build()
    ratios = []
    with Mesh({"client": "node-a", "server": "node-a"}) as mesh:
        client, server = mesh.pod("client"), mesh.pod("server")
        start(server, [str(PROGRAMS / "sink"), f"{ECHO_PORT}:echo", f"{ONCE_PORT}:once"])
        client.enrol()
        for turn in range(TURNS):
            with tempfile.TemporaryDirectory() as folder:
                run = Run(client, server, Path(folder))
                try:
                    run.await_ready()
                    quiet = run.pulse(SECONDS)
                    run.begin("push")
                    busy = run.pulse(SECONDS)
                    run.wait()
                    if turn == TURNS - 1:
                        rate = run.hit_rate()
                finally:
                    run.end()
            ratios.append(busy["p99_us"] / quiet["p99_us"])
            shown = (f"{one['p50_us']:.0f} / {one['p99_us']:.0f}" for one in (quiet, busy))
            print(f"p50 / p99 in us: {' -> '.join(shown)}, p99 x{ratios[-1]:.2f}", flush=True)
    median = statistics.median(ratios)
    print(f"p99 x{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), goal {GOAL}")
    print(f"decided from the cache while workloads change: {rate:.1%}")
    return int(median > GOAL)


if __name__ == "__main__":
    sys.exit(main())
