# SPDX-License-Identifier: Apache-2.0
"""Where one contestant runs: its own client and server pod, its two proxies, the application."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bench import gauges
from bench.gauges import Usage
from ztunnel_py.cli import topology
from ztunnel_py.cli.topology import REPOSITORY, TopologyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import IO

    from bench.contestants import Contestant
    from bench.gauges import Memory
    from ztunnel_py.cli.topology import Namespace, Pod

PROGRAMS = REPOSITORY / "build" / "bench"
DISCARD_PORT, ECHO_PORT, ONCE_PORT, HTTP_PORT, SOURCE_PORT = range(8080, 8085)
SHORT_PORT, SHORT_PORTS = 9000, 16
PROBE_TIMEOUT_S = 3.0
WORKERS = 2
"""Of each proxy where nothing is pinned."""
IDLE_TUNNEL_S = 1
"""After how long an unused tunnel is closed if tunnels are not shared."""
LOG_TAIL = 50
WIRE = "wire"
CONGESTION_CONTROL = "reno"
"""Every kernel has it and lets a namespace choose it. A machine may have set bbr, whose pacing
timers halve what a veth carries."""
CONGESTION_FILE = "/proc/sys/net/ipv4/tcp_congestion_control"


class LaneError(Exception):
    """A program of the lane does not work; the text says which and why."""


def start(
    space: Namespace,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    output: int | IO[str] = subprocess.DEVNULL,
) -> subprocess.Popen[str]:
    """Starts a program that the mesh ends with itself; in our session, unlike `Namespace.popen`.

    Linux may weigh sessions against each other (sched_autogroup_enabled), and then a program of
    the lowest priority in a session of its own takes as much of a core as the proxies do.
    """
    program = subprocess.Popen(
        space.command(["env", "-C", str(REPOSITORY), *argv]),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=None if env is None else {**os.environ, **env},
        text=True,
    )
    space.programs.append(program)
    return program


class Cores(NamedTuple):
    """Where programs run: on these cores, or anywhere if None."""

    client: int | None
    server: int | None
    workers: int
    """Of each proxy."""

    @classmethod
    def of(cls, *, is_pinned: bool) -> Cores:
        """One core of this machine for each side, or any core for `WORKERS` workers."""
        usable = sorted(os.sched_getaffinity(0))
        if not is_pinned:
            return ANYWHERE
        return cls(usable[0], usable[min(1, len(usable) - 1)], 1)

    def pinned(self, argv: Sequence[str], core: int | None) -> list[str]:
        """The command line that runs `argv` on that core."""
        return [*([] if core is None else ["taskset", "--cpu-list", str(core)]), *argv]


ANYWHERE = Cores(None, None, WORKERS)


class Variant(NamedTuple):
    """How proxies are set up in a phase of the run."""

    name: str
    shares_tunnels: bool = True
    """Streams share tunnels; else each has its own."""
    n_others: int = 0
    """Workloads that the client's proxy knows and nobody uses."""
    ready_s: float = 15.0
    """Time to become ready."""
    is_pinned: bool = True
    """Each side has a core of its own; else all share all cores."""


class Launch(NamedTuple):
    """How a program is started."""

    argv: Sequence[str]
    env: Mapping[str, str] | None = None


class Pair(NamedTuple):
    """The client's and the server's proxy."""

    client: Launch
    server: Launch


@dataclass(slots=True)
class Lane:
    """One contestant's place. `start` and `stop` are a pair, around each phase."""

    contestant: Contestant
    client: Pod
    server: Pod
    folder: Path
    cores: Cores = ANYWHERE
    """As the variant that was started last says."""
    failure: str = ""
    """Why the lane is out for this phase."""
    _proxies: list[subprocess.Popen[str]] = field(default_factory=list)
    _application: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The contestant's name."""
        return self.contestant.name

    def prepare(self) -> None:
        """Joins both pods by a wire of their own, and redirects those of one with proxies.

        Through their nodes a packet would cross three interfaces and two routers, in time that
        is charged to whoever sends it, mostly a proxy.
        """
        pairs = [(self.client, self.server), (self.server, self.client)]
        for pod, _ in pairs:
            pod.run(["sh", "-c", f"echo {CONGESTION_CONTROL} >{CONGESTION_FILE}"])
        link = ["ip", "link", "add", WIRE, "type", "veth", "peer", "name", WIRE]
        self.client.run([*link, "netns", self.server.netns])
        for pod, _ in pairs:
            pod.run(["ip", "link", "set", WIRE, "up"])
        for pod, other in pairs:
            route = ["ip", "route", "add", f"{other.ipv4}/32", "dev", WIRE, "src", pod.ipv4]
            pod.run(route)
        if self.contestant.has_proxies:
            self.client.enrol()
            self.server.enrol()

    def start(self, variant: Variant) -> None:
        """Starts application and proxies and waits until a byte has gone through and back."""
        self._start(variant, has_server=False)

    def join(self, variant: Variant) -> None:
        """The same, where another lane has started the application and the server's proxy."""
        self._start(variant, has_server=True)

    def stop(self) -> None:
        """Ends the proxies and the application."""
        topology.stop([*self._proxies, *self._application])
        self._proxies.clear()
        self._application.clear()

    def load(
        self, kind: str, port: int, *arguments: float, timeout_s: float = 90
    ) -> dict[str, float]:
        """Runs the load generator from the client to the application; returns what it printed.

        Raises:
            LaneError: it failed, or printed that some connections did.
        """
        argv = self.load_argv(kind, port, *arguments)
        try:
            done = self.client.run(argv, check=False, timeout_s=timeout_s)
        except TopologyError as error:
            raise LaneError(f"{error}{self._ended()}") from error
        if done.returncode != 0:
            words = done.stderr.strip() or f"the load generator ended with {done.returncode}"
            raise LaneError(f"{words}{self._ended()}")
        printed: dict[str, float] = json.loads(done.stdout)
        return printed

    def load_argv(self, kind: str, port: int, *arguments: float) -> list[str]:
        """The load generator's command line."""
        numbers = [str(int(argument)) for argument in arguments]
        argv = [str(PROGRAMS / "load"), kind, self.server.ipv4, str(port), *numbers]
        return self.cores.pinned(argv, self.cores.client)

    def cpu(self) -> Usage | None:
        """CPU time of the proxies so far; None if there are none."""
        if not self._proxies:
            return None
        server, client = (gauges.cpu_s(proxy.pid) for proxy in self._proxies)
        return Usage(client, server)

    def memory(self) -> tuple[Memory, Memory]:
        """Memory of the client's and of the server's proxy.

        Raises:
            LaneError: there are no proxies.
        """
        if not self._proxies:
            raise LaneError("has no proxies")
        server, client = (gauges.memory(proxy.pid) for proxy in self._proxies)
        return client, server

    def accepted(self) -> int:
        """Connections that the server's pod, application and proxy, has accepted so far."""
        return gauges.parse_accepted(self.server.run(["cat", "/proc/net/snmp"]).stdout)

    def log(self, pod: Pod) -> Path:
        """The file with the output of the pod's proxy."""
        return self.folder / f"{pod.name}.log"

    def _start(self, variant: Variant, *, has_server: bool) -> None:
        self.failure = ""
        self.cores = Cores.of(is_pinned=variant.is_pinned)
        try:
            if not has_server:
                self._serve()
            if pair := self.contestant.pair(self, variant):
                if not has_server:
                    self._launch(self.server, pair.server, self.cores.server)
                self._launch(self.client, pair.client, self.cores.client)
            self._await_byte(variant.ready_s)
        except (LaneError, TopologyError, OSError, ValueError, ImportError) as error:
            self.failure = f"did not start: {error}"

    def _serve(self) -> None:
        ports = {
            DISCARD_PORT: "discard",
            ECHO_PORT: "echo",
            ONCE_PORT: "once",
            HTTP_PORT: "http",
            SOURCE_PORT: "source",
            **dict.fromkeys(range(SHORT_PORT, SHORT_PORT + SHORT_PORTS), "echo"),
        }
        sink = [str(PROGRAMS / "sink"), *[f"{port}:{mode}" for port, mode in ports.items()]]
        self._application.append(start(self.server, self.cores.pinned(sink, self.cores.server)))

    def _launch(self, pod: Pod, launch: Launch, core: int | None) -> None:
        with self.log(pod).open("a") as log:
            argv = self.cores.pinned(launch.argv, core)
            self._proxies.append(start(pod, argv, env=launch.env, output=log))

    def _await_byte(self, ready_s: float) -> None:
        deadline = time.monotonic() + ready_s
        while True:
            try:
                self.load("pingpong", ECHO_PORT, 1, 60, timeout_s=PROBE_TIMEOUT_S)
            except LaneError:
                if self._ended() or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _ended(self) -> str:
        """For messages: which proxy is gone, and its last words."""
        for pod, proxy in zip((self.server, self.client), self._proxies, strict=False):
            if proxy.poll() is not None:
                text = self.log(pod).read_text(errors="replace")
                end = f"{pod.name} ended with {proxy.returncode}"
                return f"; the proxy in {end}: {last_words(text)}"
        return ""


def last_words(log: str) -> str:
    """The last line of a log that speaks of an error, else the last line."""
    lines = log.strip().splitlines()[-LOG_TAIL:]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no words"])[-1][:300]
