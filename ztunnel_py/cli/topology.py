# SPDX-License-Identifier: Apache-2.0
"""Builds nodes and pods out of network namespaces, for the demo, the benchmark and the tests.

Two nodes are routers joined by one veth pair, the wire. A pod is a namespace behind its node:

    pod eth0 -- pod0 [ node-a ] wire ------ wire [ node-b ] pod0 -- eth0 pod

Every pod has one IPv4 and one IPv6 address and its node as only route, so everything it sends to
another address crosses the node, and what goes to a pod of the other node crosses the wire.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType, TracebackType

REPOSITORY = Path(__file__).parents[2]
NODES = ("node-a", "node-b")
NAME_PREFIX = "zt"
NETNS_DIR = "/run/netns"
COMMAND_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 3.0
LINK_TIMEOUT_S = 5.0


class TopologyError(Exception):
    """A command that builds or uses the namespaces failed; the text has its own words."""


class NamespacesForbiddenError(TopologyError):
    """The kernel lets this user build no network namespaces."""


class Realm:
    """The place where namespaces are built: this machine as root, else a user namespace.

    Without root one quiet program holds a user namespace open, with a `/run` of its own; commands
    enter it. It ends with this program, however that ends, because it waits on a pipe from it.
    """

    def __init__(self) -> None:
        """Opens the realm.

        Raises:
            NamespacesForbiddenError: neither way is open to this user.
        """
        add_system_path()
        self._holder: subprocess.Popen[str] | None = None
        self.prefix: tuple[str, ...] = ()
        if os.geteuid() == 0 and _succeeds(["unshare", "-nm", "true"]):
            return
        self._holder = _hold_user_namespace()
        self.prefix = (
            *("nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--net"),
            *("--preserve-credentials", "--"),
        )

    @property
    def is_root(self) -> bool:
        """Whether namespaces are the machine's own, visible to `ip netns` in any shell."""
        return self._holder is None

    def command(self, argv: Sequence[str], netns: str | None = None) -> list[str]:
        """The command line that runs `argv` in this realm, in one of its network namespaces."""
        enter = ["nsenter", f"--net={NETNS_DIR}/{netns}", "--"] if netns else []
        return [*self.prefix, *enter, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        netns: str | None = None,
        text_in: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end and returns its output.

        Raises:
            TopologyError: it is missing, took too long or, with `check`, failed.
        """
        shown = " ".join(argv) + (f" (in {netns})" if netns else "")
        try:
            done = subprocess.run(
                self.command(argv, netns),
                input=text_in,
                env=None if env is None else {**os.environ, **env},
                timeout=timeout_s,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as exc:
            raise TopologyError(f"the program {exc.filename} is missing") from exc
        except subprocess.TimeoutExpired as exc:
            raise TopologyError(f"{shown} did not end within {timeout_s} s") from exc
        if check and done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip()
            raise TopologyError(f"{shown} failed with {done.returncode}: {words}")
        return done

    def close(self) -> None:
        """Ends the holder of the user namespace; the kernel removes what is left in it."""
        if self._holder is not None:
            stop([self._holder])
            self._holder = None


def add_system_path() -> None:
    """Adds the folders of `ip` and `iptables` to the search path, where users often lack them."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    folders += [folder for folder in ("/usr/sbin", "/sbin") if folder not in folders]
    os.environ["PATH"] = os.pathsep.join(folders)


def _succeeds(argv: Sequence[str]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _hold_user_namespace() -> subprocess.Popen[str]:
    ready = (
        "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up && echo ok && exec cat"
    )
    holder = subprocess.Popen(
        ["unshare", "-Urnm", "sh", "-c", ready],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stderr is not None
    if holder.stdout.readline() != "ok\n":
        words = holder.stderr.read().strip()
        stop([holder])
        raise NamespacesForbiddenError(
            f"this kernel lets the current user build no namespaces: {words}"
        )
    return holder


def stop(programs: Sequence[subprocess.Popen[str]]) -> None:
    """Ends programs politely, all at once, and by force those still there after three seconds."""
    running = [program for program in programs if program.poll() is None]
    for program in running:
        program.terminate()
    for program in running:
        try:
            program.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    for program in programs:
        for pipe in (program.stdin, program.stdout, program.stderr):
            if pipe is not None:
                pipe.close()


@dataclass(slots=True)
class Namespace:
    """One network namespace: a node, or the base of a pod."""

    name: str
    netns: str
    realm: Realm
    programs: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in here."""
        return self.realm.command(argv, self.netns)

    def run(
        self,
        argv: Sequence[str],
        *,
        text_in: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in here to its end; see `Realm.run`."""
        return self.realm.run(
            argv, netns=self.netns, text_in=text_in, env=env, timeout_s=timeout_s, check=check
        )

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[str] | None = subprocess.DEVNULL,
        stderr: int | IO[str] | None = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Starts a program in here; the mesh ends it with itself. `env` adds to the environment."""
        # entering a mount namespace leads to its root folder, so the last program changes it
        place = [] if cwd is None else ["env", "-C", str(cwd)]
        program = subprocess.Popen(
            self.command([*place, *argv]),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,  # Ctrl-C is for us; we then end it in order
            text=True,
        )
        self.programs.append(program)
        return program


@dataclass(slots=True)
class Pod(Namespace):
    """A pod: a namespace with one interface, behind its node."""

    node: str = ""
    ipv4: str = ""
    ipv6: str = ""

    def enrol(self, *options: str, backend: str | None = None) -> None:
        """Installs the redirection rules, with options of `ztunnel-py redirect apply`."""
        self.redirect("apply", *options, backend=backend)

    def unenrol(self) -> None:
        """Removes the redirection rules, whatever programs made them."""
        self.redirect("remove")

    def redirect(
        self,
        verb: str,
        *options: str,
        backend: str | None = None,
        env: Mapping[str, str] | None = None,
        where: Namespace | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `ztunnel-py redirect` for this pod, inside it or `where`.

        `backend` is `nft`, `iptables-nft` or `iptables-legacy`.
        """
        kind, _, forced = (backend or "auto").partition("-")
        argv = [sys.executable, "-m", "ztunnel_py", "redirect", verb, "--backend", kind, *options]
        argv += ["--netns", f"{NETNS_DIR}/{self.netns}"]
        ours = {"FORCE_IPTABLES_BINARY": forced, "PYTHONPATH": os.pathsep.join(sys.path)}
        return (where or self).run(argv, env={**ours, **(env or {})}, check=check)


class Mesh:
    """Two nodes and their pods, from `with` to the end of its block, whatever ends it.

    While the block runs in the main thread, SIGTERM and SIGHUP raise SystemExit there.
    """

    def __init__(self, pods: Mapping[str, str]) -> None:
        """Plans the mesh; `pods` gives each pod's node, `node-a` or `node-b`."""
        self._plan = dict(pods)
        self._run = f"{NAME_PREFIX}{os.getpid()}-{secrets.token_hex(2)}"
        self._stack = contextlib.ExitStack()
        self.nodes: dict[str, Namespace] = {}
        self.pods: dict[str, Pod] = {}

    def __enter__(self) -> Self:
        """Builds everything.

        Raises:
            NamespacesForbiddenError: this user may not build namespaces.
            TopologyError: a command failed; what had been built is removed.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(_signals_end_the_block())
            self.realm = Realm()
            stack.callback(self.realm.close)
            if self.realm.is_root:
                sweep(self.realm)
            stack.callback(self._remove)
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the programs and removes the namespaces."""
        self._stack.close()

    def pod(self, name: str) -> Pod:
        """The pod of that name."""
        return self.pods[name]

    def node(self, name: str) -> Namespace:
        """The node of that name; its interface `wire` leads to the other one."""
        return self.nodes[name]

    def _build(self) -> None:
        for name in NODES:
            self.nodes[name] = Namespace(name, f"{self._run}-{name}", self.realm)
        for i, (name, node) in enumerate(self._plan.items(), start=10):
            subnet = NODES.index(node) + 1
            self.pods[name] = Pod(
                *(name, f"{self._run}-{name}", self.realm),
                node=node,
                ipv4=f"10.77.{subnet}.{i}",
                ipv6=f"fd77:{subnet}::{i}",
            )
        self._batch(None, [f"netns add {space.netns}" for space in self._spaces()])
        # no duplicate address detection: it would keep IPv6 waiting for two seconds
        no_wait = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"
        for space in self._spaces():
            space.run(["sh", "-c", no_wait])
        for node in NODES:
            self._batch(node, self._node_lines(node))
        for pod in self.pods.values():
            self._batch(pod.name, _pod_lines(NODES.index(pod.node) + 1, pod))
        forward = "echo 1 > {0}/ipv4/ip_forward; echo 1 > {0}/ipv6/conf/all/forwarding"
        for node in NODES:
            self.nodes[node].run(["sh", "-ec", forward.format("/proc/sys/net")])
        for node in NODES:
            behind = [pod for pod in self.pods.values() if pod.node == node]
            _await_links(self.nodes[node], ["wire", *(f"pod{i}" for i in range(len(behind)))])
        for pod in self.pods.values():
            _await_links(pod, ["eth0"])

    def _node_lines(self, node: str) -> Iterator[str]:
        here = NODES.index(node) + 1
        there = 3 - here
        yield "link set lo up"
        if here == 1:
            yield f"link add wire type veth peer name wire netns {self.nodes[NODES[1]].netns}"
        yield f"addr add 10.77.0.{here}/24 dev wire"
        yield f"addr add fd77::{here}/64 dev wire nodad"
        yield "link set wire up"
        yield f"route add 10.77.{there}.0/24 via 10.77.0.{there}"
        yield f"route add fd77:{there}::/64 via fd77::{there}"
        for i, pod in enumerate(pod for pod in self.pods.values() if pod.node == node):
            yield f"link add pod{i} type veth peer name eth0 netns {pod.netns}"
            yield f"addr add 10.77.{here}.1/32 dev pod{i}"
            yield f"addr add fd77:{here}::1/128 dev pod{i} nodad"
            yield f"link set pod{i} up"
            yield f"route add {pod.ipv4}/32 dev pod{i}"
            yield f"route add {pod.ipv6}/128 dev pod{i}"

    def _spaces(self) -> list[Namespace]:
        return [*self.nodes.values(), *self.pods.values()]

    def _batch(self, name: str | None, lines: Sequence[str] | Iterator[str]) -> None:
        """Runs lines of the `ip` command in one process, in a namespace if one is named."""
        space = self.nodes.get(name) or self.pods.get(name) if name else None
        netns = space.netns if space else None
        self.realm.run(["ip", "-batch", "-"], netns=netns, text_in="\n".join(lines) + "\n")

    def _remove(self) -> None:
        with _signals_wait():
            stop([program for space in self._spaces() for program in space.programs])
            remove(self.realm, [space.netns for space in self._spaces()])


def _await_links(space: Namespace, names: Sequence[str]) -> None:
    """Waits until the kernel has noticed that both ends of each link are up.

    By itself it may take a second over that, and sends no IPv6 before. Asking for a single link
    hurries it; listing all of them does not.
    """
    deadline = time.monotonic() + LINK_TIMEOUT_S
    lines = "".join(f"link show dev {name}\n" for name in names)
    while "state DOWN" in space.run(["ip", "-o", "-batch", "-"], text_in=lines).stdout:
        if time.monotonic() > deadline:
            raise TopologyError(f"a link of {space.name} did not come up")
        time.sleep(0.01)


def _pod_lines(subnet: int, pod: Pod) -> Iterator[str]:
    yield "link set lo up"
    yield f"addr add {pod.ipv4}/32 dev eth0"
    yield f"addr add {pod.ipv6}/128 dev eth0 nodad"
    yield "link set eth0 up"
    yield f"route add 10.77.{subnet}.1 dev eth0 scope link"
    yield f"route add default via 10.77.{subnet}.1 dev eth0"
    yield f"route add fd77:{subnet}::1 dev eth0"
    yield f"route add default via fd77:{subnet}::1 dev eth0"


def remove(realm: Realm, names: Sequence[str]) -> None:
    """Removes namespaces of ours, first the programs still in them; missing ones are ignored."""
    present = set(realm.run(["ls", NETNS_DIR], check=False).stdout.split())
    for name in [name for name in names if name in present]:
        for pid in realm.run(["ip", "netns", "pids", name], check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)
        realm.run(["ip", "netns", "delete", name], check=False)


def sweep(realm: Realm) -> list[str]:
    """Removes namespaces left over by runs that no longer exist, and returns their names."""
    names = realm.run(["ls", NETNS_DIR], check=False).stdout.split()
    dead = [name for name in names if _is_leftover(name)]
    remove(realm, dead)
    return dead


def _is_leftover(netns: str) -> bool:
    owner, _, rest = netns.removeprefix(NAME_PREFIX).partition("-")
    ours = netns.startswith(NAME_PREFIX) and owner.isdecimal() and bool(rest)
    return ours and not Path("/proc", owner).exists()


@contextlib.contextmanager
def _signals_end_the_block() -> Iterator[None]:
    """SIGTERM and SIGHUP become SystemExit, so that every `finally` runs."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handlers(end, (signal.SIGTERM, signal.SIGHUP)):
        yield


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Nothing interrupts the cleaning up, which is short."""

    def ignore(_number: int, _frame: FrameType | None) -> None: ...

    with _handlers(ignore, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)):
        yield


@contextlib.contextmanager
def _handlers(handle: object, numbers: Sequence[int]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set them, and only it is interrupted by them
        return
    before = {number: signal.signal(number, handle) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
