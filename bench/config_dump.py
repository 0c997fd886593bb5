# SPDX-License-Identifier: Apache-2.0
"""What a hundred dumps at once cost: `python -m bench.config_dump`, about five minutes.

A proxy with 70,000 workloads of a local state file. 64 connections past the mesh make 4,000 round
trips a second through it, while nobody asks and while 100 clients get `/config_dump` at the same
time, twice. Printed: p50 and p99 of the round trips and their ratio, how long the dumps took, and
by how much the proxy's resident memory grew at most. Ends with 1 if a goal is missed.

Proxy, clients and readers share the machine's cores; the readers are nice, since the CPU they use
is not the proxy's.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import local_state
from bench.compare import build
from bench.lane import ECHO_PORT, PROGRAMS, start
from bench.xds_traffic import await_passing, pulse
from ztunnel_py.cli.topology import REPOSITORY, Mesh, stop

if TYPE_CHECKING:
    from ztunnel_py.cli.topology import Pod

WORKLOADS, READERS, TURNS = 70_000, 100, 3
QUIET_S, BUSY_S = 4.0, 8.0
GOAL, GOAL_MB = 1.5, 500.0
READY_S = 120.0
BLOCK = 64 * 1024
ADMIN = ("127.0.0.1", 15000)


class Dumps(NamedTuple):
    """What the readers got."""

    seconds: float
    megabytes: float


async def read_all(count: int) -> None:
    """Gets `count` dumps at once; prints seconds and the bytes of one."""
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    lengths = await asyncio.gather(*(_read() for _ in range(count)))
    assert len(set(lengths)) == 1, "some are not whole"
    print(time.monotonic() - began, lengths[0])


async def _read() -> int:
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, ADMIN)
        await loop.sock_sendall(connection, b"GET /config_dump HTTP/1.0\r\nHost: x\r\n\r\n")
        length = 0
        while some := await loop.sock_recv(connection, BLOCK):
            length += len(some)
    return length


class Run:
    """The proxy in its pod."""

    def __init__(self, client: Pod, server: Pod, folder: Path) -> None:
        self._client, self._server = client, server
        state = folder / "state.yaml"
        with state.open("w") as file:
            local_state.write_workloads(file, WORKLOADS)
            file.writelines(local_state.workload(client.name, client.ipv4, client.node))
        env = {
            "PROXY_MODE": "dedicated",
            "PROXY_WORKLOAD_INFO": f"{local_state.NAMESPACE}/{client.name}/{client.name}",
            "PACKET_MARK": "1337",
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": str(state),
            "FAKE_CA": "true",
            "ZTUNNEL_WORKER_THREADS": "2",
        }
        with (folder / "log").open("w") as log:
            self.proxy = start(client, [sys.executable, "-m", "ztunnel_py"], env=env, output=log)

    def await_ready(self) -> None:
        """Returns when a connection passes."""
        await_passing(self._client, self._server, READY_S)

    def pulse(self, seconds: float) -> dict[str, float]:
        """What the connections saw."""
        return pulse(self._client, self._server, seconds)

    def begin_dumps(self) -> subprocess.Popen[str]:
        """Has the readers begin."""
        argv = [sys.executable, "-m", "bench.config_dump", str(READERS)]
        readers = subprocess.Popen(
            self._client.command(["env", "-C", str(REPOSITORY), "nice", *argv]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert readers.stdin is not None
        assert readers.stdout is not None
        readers.stdout.readline()
        readers.stdin.write("go\n")
        readers.stdin.flush()
        return readers

    def resident_mb(self) -> float:
        """The proxy's memory now; from now on its peak is counted anew."""
        Path(f"/proc/{self.proxy.pid}/clear_refs").write_text("5")
        return self._status_mb("VmRSS")

    def peak_mb(self) -> float:
        """The most since `resident_mb`."""
        return self._status_mb("VmHWM")

    def _status_mb(self, name: str) -> float:
        text = Path(f"/proc/{self.proxy.pid}/status").read_text()
        (line,) = (line for line in text.splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024


def measure(run: Run) -> tuple[float, float]:
    """Prints a line; the ratio of the p99s, and by how many MB memory grew."""
    quiet, before_mb = run.pulse(QUIET_S), run.resident_mb()
    readers = run.begin_dumps()
    busy = run.pulse(BUSY_S)
    said, _ = readers.communicate(timeout=READY_S)
    dumps = Dumps(*map(float, said.split()))
    ratio, grown_mb = busy["p99_us"] / quiet["p99_us"], run.peak_mb() - before_mb
    shown = (f"{one['p50_us']:.0f} / {one['p99_us']:.0f}" for one in (quiet, busy))
    print(
        f"p50 / p99 in us: {' -> '.join(shown)}, p99 x{ratio:.2f}; {READERS} dumps of "
        f"{dumps.megabytes / 1e6:.0f} MB in {dumps.seconds:.1f} s; resident {before_mb:.0f} MB, "
        f"at most {grown_mb:.0f} MB more",
        flush=True,
    )
    return ratio, grown_mb


def main() -> int:
    """Prints a line per turn; returns 1 if a goal is missed."""
    build()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mesh = stack.enter_context(Mesh({"client": "node-a", "server": "node-a"}))
        client, server = mesh.pod("client"), mesh.pod("server")
        start(server, [str(PROGRAMS / "sink"), f"{ECHO_PORT}:echo"])
        client.enrol()
        run = Run(client, server, folder)
        stack.callback(stop, [run.proxy])
        run.await_ready()
        found = [measure(run) for _ in range(TURNS)]
    ratios, grown_mb = sorted(ratio for ratio, _ in found), max(grown for _, grown in found)
    median = ratios[len(ratios) // 2]
    print(f"p99 x{median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), goal {GOAL}")
    print(f"memory {grown_mb:.0f} MB, goal {GOAL_MB:.0f}; load {os.getloadavg()[0]:.1f}")
    return int(median > GOAL or grown_mb > GOAL_MB)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(read_all(int(sys.argv[1])))
    else:
        sys.exit(main())
