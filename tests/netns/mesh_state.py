# SPDX-License-Identifier: Apache-2.0
"""Meshes for tests: what all proxies know, and for each pod a proxy, an application, a caller.

A pod `near` becomes workload `near-0` of deployment `near` in namespace `shop`, with an account of
its own, so that names that are mixed up do not go unnoticed.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import yaml

from tests.netns.app import GREETING_SIZE
from tests.process.conftest import PROXY, ROOT, environment
from ztunnel_py.cli.demo_mesh import Journal, write_root
from ztunnel_py.cli.topology import Mesh
from ztunnel_py.identity import fake
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from ztunnel_py.cli.demo_mesh import Event
    from ztunnel_py.cli.topology import Namespace, Pod

Entry = dict[str, Any]

NAMESPACE = "shop"
CLUSTER = "demo"
DOMAIN = "cluster.local"
APP_PORT = 8080
BODY = random.Random(7).randbytes(1 << 16)
DEADLINE_S, START_S = 10.0, 25.0
_APP = Path(__file__).with_name("app.py")
_CALLER = Path(__file__).with_name("caller.py")
_SURGE = Path(__file__).with_name("surge.py")
_SAMPLE = re.compile(r"istio_tcp_(\w+?)(?:_total)?\{(.*)\} (\d+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_ENDINGS = ("connection complete", "connection failed")


# --- what the proxies know


def workload(pod: Pod, **changes: object) -> Entry:
    """The entry of a pod's workload in the local state."""
    return {
        "uid": f"{CLUSTER}//Pod/{NAMESPACE}/{pod.name}-0",
        "name": f"{pod.name}-0",
        "namespace": NAMESPACE,
        "serviceAccount": pod.name,
        "trustDomain": DOMAIN,
        "clusterId": CLUSTER,
        "workloadName": pod.name,
        "workloadType": "deployment",
        "canonicalName": f"{pod.name}-app",
        "canonicalRevision": "v1",
        "workloadIps": [pod.ipv4, pod.ipv6],
        "node": pod.node,
        "protocol": "HBONE",
        "locality": {"region": "eu", "zone": pod.node.replace("node", "zone"), "subzone": ""},
        "services": {},
        **changes,
    }


def host(name: str) -> str:
    """The hostname of a service."""
    return f"{name}.{NAMESPACE}.svc.cluster.local"


def key(name: str) -> str:
    """How workloads name a service."""
    return f"{NAMESPACE}/{host(name)}"


def service(name: str, vip: str, ports: Mapping[int, int], **changes: object) -> Entry:
    """The entry of a service."""
    return {
        "name": name,
        "namespace": NAMESPACE,
        "hostname": host(name),
        "vips": [f"/{vip}"],
        "ports": dict(ports),
        **changes,
    }


def gateway(destination: str, port: int = 15008) -> Entry:
    """A reference to a waypoint or to a network gateway."""
    return {"destination": destination, "hboneMtlsPort": port}


def spiffe(name: str) -> str:
    """The identity of a pod."""
    return f"spiffe://{DOMAIN}/ns/{NAMESPACE}/sa/{name}"


# --- what they say


def fields(source: Pod, target: Pod, *, is_mutual: bool, service: str = "") -> dict[str, str]:
    """The constant fields of an access line between two pods that are known."""
    found = {}
    for side, pod in (("src", source), ("dst", target)):
        found[f"{side}.workload"] = f"{pod.name}-0"
        found[f"{side}.namespace"] = NAMESPACE
        found[f"{side}.cluster"] = CLUSTER
        if is_mutual:
            found[f"{side}.identity"] = spiffe(pod.name)
    if service:
        found["dst.service"] = host(service)
    return found


def labels(
    reporter: str,
    source: Pod,
    target: Pod,
    *,
    is_mutual: bool,
    service: str = "",
    flags: str = "-",
) -> dict[str, str]:
    """All labels of a connection between two pods that are known."""
    found = {"reporter": reporter}
    for side, pod in (("source", source), ("destination", target)):
        found |= {
            f"{side}_workload": pod.name,
            f"{side}_canonical_service": f"{pod.name}-app",
            f"{side}_canonical_revision": "v1",
            f"{side}_workload_namespace": NAMESPACE,
            f"{side}_principal": spiffe(pod.name),
            f"{side}_app": f"{pod.name}-app",
            f"{side}_version": "v1",
            f"{side}_cluster": CLUSTER,
            f"{side}_region": "eu",
            f"{side}_zone": pod.node.replace("node", "zone"),
        }
    if not is_mutual:
        found["source_principal"] = "unknown"
    found["destination_service"] = host(service) if service else "unknown"
    found["destination_service_namespace"] = NAMESPACE if service else "unknown"
    found["destination_service_name"] = service or "unknown"
    found["request_protocol"] = "tcp"
    found["response_flags"] = flags
    found["connection_security_policy"] = "mutual_tls" if is_mutual else "unknown"
    return found


def constant(line: Event) -> dict[str, str]:
    """The fields of an access line that `fields` gives."""
    named = (name for name in line if name.startswith(("src.", "dst.")))
    return {name: line[name] for name in named if not name.endswith("addr")}


def at(address: str, port: int) -> str:
    """Address and port as they are logged."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# --- who is there


class Read(NamedTuple):
    """What came."""

    data: bytes
    ended: str
    """Empty if all came that was asked for; else `fin`, `reset`, `silence`, or TLS's word."""


class Call:
    """A connection that a caller made."""

    def __init__(self, caller: Caller, number: int, local: tuple[str, int]) -> None:
        self._caller = caller
        self._id = number
        self.local = at(*local)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> bool:
        """Whether the bytes could be sent."""
        return "error" not in self._caller.ask("send", id=self._id, data=data.hex())

    def read(self, n: int = 1 << 20, wait_s: float = DEADLINE_S) -> Read:
        """Reads so many bytes, or until an end."""
        answer = self._caller.ask("read", id=self._id, n=n, wait_s=wait_s)
        return Read(bytes.fromhex(answer["data"]), answer["ended"])

    def greeting(self) -> str:
        """Who answers, as `name:port`; empty if nobody."""
        return self.read(GREETING_SIZE).data.decode().strip()

    def echoed(self, body: bytes = BODY) -> bool:
        """Whether a body came back as it was sent."""
        is_sent = self.send(body)
        return is_sent and self.read(len(body)).data == body

    def tls(self, pem: str = "", alpn: str = "h2") -> str:
        """Shakes hands; the error, if there is one."""
        answer = self._caller.ask("tls", id=self._id, pem=pem, alpn=alpn, wait_s=DEADLINE_S)
        return str(answer.get("error", ""))

    def request(self, authority: str, *more: tuple[str, str], method: str = "CONNECT") -> str:
        """Asks for a stream; the status, or how that ended."""
        headers = [(":method", method), (":authority", authority), *more]
        answer = self._caller.ask("request", id=self._id, headers=headers, wait_s=DEADLINE_S)
        return str(answer.get("status") or answer.get("ended") or answer["error"])

    def end(self) -> None:
        """Says that nothing more will come."""
        self._caller.ask("end", id=self._id)

    def close(self) -> None:
        """Hangs up, unless that was done."""
        self._caller.ask("close", id=self._id)


class Caller:
    """The program in a pod that makes connections for the test."""

    def __init__(self, pod: Namespace) -> None:
        self._count = 0
        self._program = subprocess.Popen(
            pod.command(["env", "-C", str(ROOT), sys.executable, str(_CALLER)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def dial(self, address: str, port: int, wait_s: float = DEADLINE_S) -> Call | str:
        """A connection, or the name of the error."""
        self._count += 1
        answer = self.ask("dial", id=self._count, host=address, port=port, wait_s=wait_s)
        if "error" in answer:
            return str(answer["error"])
        return Call(self, self._count, tuple(answer["local"]))

    def call(self, address: str, port: int = APP_PORT) -> Call:
        """A connection that must come about."""
        call = self.dial(address, port)
        assert isinstance(call, Call), f"{address}:{port}: {call}"
        return call

    def is_refused(self, address: str, port: int) -> bool:
        """Whether nobody listens there."""
        call = self.dial(address, port)
        if isinstance(call, Call):
            call.close()
        return call == "ConnectionRefusedError"

    def get(self, port: int, path: str) -> str:
        """The body of an HTTP response from this pod's loopback."""
        call = self.call("127.0.0.1", port)
        call.send(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        data = call.read().data.decode()
        call.close()
        return data.partition("\r\n\r\n")[2]

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """One order and its answer."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._program.stdin.flush()
        answer: dict[str, Any] = json.loads(self._program.stdout.readline())
        return answer

    def stop(self) -> None:
        """Ends the program."""
        self._program.kill()
        self._program.wait()
        for pipe in (self._program.stdin, self._program.stdout):
            if pipe is not None:
                pipe.close()


class Proxy:
    """A pod's proxy: what it logs and counts."""

    def __init__(self, caller: Caller, program: subprocess.Popen[str], log: Path) -> None:
        self._caller = caller
        self.program = program
        self.journal = Journal(log)

    def lines(self) -> list[Event]:
        """The access lines of ended connections."""
        events = self.journal.events()
        return [e for e in events if e.get("scope") == "access" and e["message"] in _ENDINGS]

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], int]:
        """Traffic series by family and labels."""
        text = self.scrape()
        return {
            (name, frozenset(_LABEL.findall(inside))): int(value)
            for name, inside, value in _SAMPLE.findall(text)
        }

    def scrape(self) -> str:
        """All metrics."""
        return self._caller.get(15020, "/metrics")

    def readiness(self) -> str:
        """What the readiness port says."""
        return self._caller.get(15021, "/healthz/ready").strip()

    def metric(self, name: str) -> int:
        """A metric without labels."""
        lines = self.scrape().splitlines()
        (value,) = (line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} "))
        return int(value)

    def admin(self, path: str) -> Any:
        """An answer of the admin port."""
        return json.loads(self._caller.get(15000, path))

    def descriptors(self) -> int:
        """Open files of the process."""
        return len(list(Path("/proc", str(self.program.pid), "fd").iterdir()))

    def mark(self) -> Mark:
        """From here on, once all that was before is over and written down."""

        def is_settled() -> bool:
            counts = Counter[str]()
            for (family, _), value in self.samples().items():
                counts[family] += value
            written = len([line for line in self.lines() if line["message"] == _ENDINGS[0]])
            n_opened, n_closed = counts["connections_opened"], counts["connections_closed"]
            return bool(n_opened == n_closed == written)

        wait(is_settled, "earlier connections to end")
        return Mark(self, len(self.lines()), self.samples())


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a proxy."""

    proxy: Proxy
    n_lines: int
    before: dict[tuple[str, frozenset[tuple[str, str]]], int]

    def line(self) -> Event:
        """The one access line since then."""
        wait(lambda: len(self.proxy.lines()) > self.n_lines, "an access line")
        (line,) = self.proxy.lines()[self.n_lines :]
        return line

    def growth(self, family: str) -> list[tuple[dict[str, str], int]]:
        """The series of a family that have grown since then, and by how much."""
        return [
            (dict(labels), value - self.before.get((name, labels), 0))
            for (name, labels), value in self.proxy.samples().items()
            if name == family and value != self.before.get((name, labels), 0)
        ]

    def counted(self) -> tuple[dict[str, str], int, int]:
        """The labels of the one connection closed since then, bytes received and sent."""
        wait(lambda: self.growth("connections_closed"), "a closed connection to be counted")
        ((labels, count),) = self.growth("connections_closed")
        assert count == 1
        received, sent = (
            sum(by for _, by in self.growth(family)) for family in ("received_bytes", "sent_bytes")
        )
        return labels, received, sent


class Surge(NamedTuple):
    """Connections that are opened at a steady rate; see `surge.py`."""

    journal: Journal

    def outcomes(self, wait_s: float) -> dict[str, int]:
        """How many ended how, once all have."""

        def ends() -> list[Event]:
            return [event for event in self.journal.events() if event["event"] == "done"]

        wait(lambda: bool(ends()), "the end", wait_s)
        (done,) = ends()
        return dict(done["outcomes"])


class PodMesh:
    """Nodes, pods and what runs in them, from `with` to the end of its block."""

    def __init__(self, pods: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self._mesh = Mesh(pods)
        self._callers: dict[str, Caller] = {}
        self._enrolled: set[str] = set()
        self.proxies: dict[str, Proxy] = {}
        self.apps: dict[str, Journal] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.mesh = stack.enter_context(self._mesh)
            stack.callback(self._stop_callers)
            write_root(self.folder / "root.pem", self.folder / "root.key")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def pod(self, name: str) -> Pod:
        """A pod."""
        return self.mesh.pod(name)

    def ip(self, name: str) -> str:
        """A pod's address."""
        return self.mesh.pod(name).ipv4

    def caller(self, name: str) -> Caller:
        """The caller in a pod."""
        if name not in self._callers:
            self._callers[name] = Caller(self.pod(name))
        return self._callers[name]

    def know(
        self,
        workloads: Sequence[Entry],
        services: Sequence[Entry] = (),
        policies: Sequence[Entry] = (),
    ) -> None:
        """What proxies that start from now on know."""
        state = {
            "workloads": list(workloads),
            "services": list(services),
            "policies": list(policies),
        }
        (self.folder / "mesh.yaml").write_text(yaml.safe_dump(state, sort_keys=False))

    def serve(self, *names: str, **changes: str) -> None:
        """Starts proxies in pods and redirects their traffic; returns when they are ready."""
        for name in names:
            self.proxies[name] = self._start(self.pod(name), changes)
        for name in names:
            if name not in self._enrolled:
                self.pod(name).enrol()
                self._enrolled.add(name)
        for name in names:
            proxy = self.proxies[name]
            awaited(proxy.journal, proxy.program, "message", "marking server ready")

    def run_app(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts the application of a pod; see `app.py`."""
        path = self.folder / f"{name}-app.log"
        argv = [sys.executable, str(_APP), name, *arguments]
        with path.open("w") as out:
            program = self.pod(name).popen(argv, stdout=out, stderr=out, cwd=ROOT)
        self.apps[name] = Journal(path)
        awaited(self.apps[name], program, "event", "ready")
        return program

    def surge(self, source: str, target: str, rate: int, seconds: int) -> Surge:
        """New connections from a pod to another's application, of which the first has passed."""
        path = self.folder / f"surge-{source}"
        argv = [sys.executable, str(_SURGE), self.ip(target), str(APP_PORT), str(rate)]
        with path.open("w") as out:
            program = self.pod(source).popen([*argv, str(seconds)], stdout=out, stderr=out)
        journal = Journal(path)
        awaited(journal, program, "event", "going")
        return Surge(journal)

    def run_envoy(self, name: str, config: Entry, argv: Callable[[Path], list[str]]) -> None:
        """Starts an Envoy in a pod and returns when it listens on 15008."""
        path = self.folder / f"{name}-envoy.json"
        path.write_text(json.dumps(config))
        log = self.folder / f"{name}-envoy.log"
        with log.open("w") as out:
            program = self.pod(name).popen(argv(path), stdout=out, stderr=out)

        def is_listening() -> bool:
            assert program.poll() is None, log.read_text()
            call = self.caller(name).dial(self.ip(name), 15008)
            if isinstance(call, Call):
                call.close()
            return isinstance(call, Call)

        wait(is_listening, f"Envoy in {name}", START_S)

    def identity(self, name: str, domain: str = DOMAIN, root: str = "root") -> Path:
        """The stem of a certificate's files: `.pem` with all, and chain, key and roots."""
        stem = self.folder / f"{root}-{domain}-{name}"
        if not Path(f"{stem}.pem").exists():
            cert, own = (self.folder / f"{root}.{suffix}" for suffix in ("pem", "key"))
            if not cert.exists():
                write_root(cert, own)
            authority = fake.FakeCa(fake.given_root(str(cert), str(own)), ttl_s=3600)
            issuing = authority.issue(Identity(domain, NAMESPACE, name))
            try:
                issuing.send(None)  # the fake CA never waits
            except StopIteration as done:
                made = done.value
            Path(f"{stem}.pem").write_bytes(made.key_pem + made.chain_pem)
            for part in ("chain", "key", "roots"):
                Path(f"{stem}.{part}.pem").write_bytes(getattr(made, f"{part}_pem"))
        return stem

    def pem(self, name: str, **options: str) -> str:
        """The path of a certificate and its key."""
        return f"{self.identity(name, **options)}.pem"

    def hbone(self, source: str, target: str, **options: str) -> Call:
        """A tunnel made by hand, as the account of the source pod."""
        call = self.caller(source).call(self.ip(target), 15008)
        assert call.tls(self.pem(source, **options)) == ""
        return call

    def _stop_callers(self) -> None:
        for caller in self._callers.values():
            caller.stop()

    def _start(self, pod: Pod, changes: Mapping[str, str]) -> Proxy:
        path = self.folder / f"{pod.name}-proxy.log"
        env = environment(
            PROXY_WORKLOAD_INFO=f"{NAMESPACE}/{pod.name}-0/{pod.name}",
            NODE_NAME=pod.node,
            LOCAL_XDS_PATH=str(self.folder / "mesh.yaml"),
            FAKE_CA_ROOT_CERT=str(self.folder / "root.pem"),
            FAKE_CA_ROOT_KEY=str(self.folder / "root.key"),
            LOG_FORMAT="json",
            **changes,
        )
        with path.open("w") as out:
            program = pod.popen(PROXY, stdout=out, stderr=out, env=env, cwd=ROOT)
        return Proxy(self.caller(pod.name), program, path)


def wait(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Returns as soon as the condition holds; fails naming `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.01)


def awaited(journal: Journal, program: subprocess.Popen[str], field: str, word: str) -> None:
    """Waits until a program that has just been started has said a word."""

    def is_said() -> bool:
        assert program.poll() is None, journal.path.read_text()
        return any(word in event.get(field, "") for event in journal.events())

    wait(is_said, f"{word!r} in {journal.path}", START_S)
