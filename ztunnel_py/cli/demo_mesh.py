# SPDX-License-Identifier: Apache-2.0
"""The demo's mesh: three pods on two nodes, a proxy and an agent on each, and a web server."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ztunnel_py.cli.topology import NETNS_DIR, NODES, REPOSITORY, Mesh, TopologyError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from ztunnel_py.cli.topology import Namespace, Pod

Event = dict[str, Any]

NAMESPACE = "demo"
POLICY = "demo/web-callers"
PODS = {"client": "node-a", "server": "node-b", "intruder": "node-b"}
VIP = "10.96.0.10"
VIP6 = "fd96::10"
HOST = "web.demo.svc.cluster.local"
SERVICE = f"demo/{HOST}"
RESOLVER = "10.96.0.2"
"""Whom pods ask for names; nobody is there."""
VIP_PORT = 80
APP_PORT = 8080
CONTROL_HOST, CONTROL_PORT = "10.77.0.1", 15012
BULK_BYTES = 256 << 20
START_TIMEOUT_S = 15.0
LOG_TIMEOUT_S = 3.0
OURS = (sys.executable, "-m", "ztunnel_py")


_LOOKUP = """
import sys, dns.message, dns.query
for kind in ("A", "AAAA"):
    reply = dns.query.udp(dns.message.make_query(sys.argv[1], kind), sys.argv[2], timeout=3)
    for found in reply.answer:
        print(*found, sep="\\n")
"""


class Journal:
    """The JSON lines that a proxy writes to its log file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def events(self) -> list[Event]:
        """All lines so far that are JSON objects; a line still being written is left out."""
        found = []
        for line in self.path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    found.append(event)
        return found

    def wait(self, matches: Callable[[Event], bool]) -> Event | None:
        """The first event that matches, awaited for three seconds; None if it does not come."""
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while True:
            for event in self.events():
                if matches(event):
                    return event
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Reply:
    """What curl reported of one request."""

    body: str
    exit_code: int
    error: str
    local_port: int
    status: int
    seconds: float
    bytes_received: int


class DemoMesh:
    """Pods, proxies and the application, from `with` to the end of its block."""

    def __init__(
        self,
        break_: str | None = None,
        *,
        istiod: bool = False,
        outsiders: Mapping[str, str] | None = None,
    ) -> None:
        """Plans it.

        `break_` leaves one piece out: `policy`, or HBONE (`plaintext`). With `istiod` a control
        plane tells the proxies what else they read from files. `outsiders` are more pods, by node,
        that have no proxy and that nobody knows of.
        """
        self._break = break_
        self.has_istiod = istiod
        self._outsiders = outsiders or {}
        self._stack = contextlib.ExitStack()
        self.journals: dict[str, Journal] = {}
        self.secret = f"secret-{secrets.token_hex(16)}"

    def __enter__(self) -> Self:
        """Builds the namespaces, starts everything and waits until it is ready.

        Raises:
            TopologyError: a command failed, or a program was not ready in time.
        """
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ztunnel-")))
            self.mesh = stack.enter_context(Mesh({**PODS, **self._outsiders}))
            self._write_files()
            app = self._start_app()
            if self.has_istiod:
                self._start_istiod()
            agents = {node: self._start_agent(self.mesh.node(node)) for node in NODES}
            proxies = {node: self._start_proxy(self.mesh.node(node)) for node in NODES}
            for node, agent in agents.items():
                self._await_text(self.folder / f"{node}-agent.log", "agent ready", agent)
            for name in PODS:
                self._enroll(self.mesh.pod(name))
            self._await(self.mesh.pod("server"), app, f"http://127.0.0.1:{APP_PORT}/", "app.log")
            for node, proxy in proxies.items():
                ready = "http://127.0.0.1:15021/healthz/ready"
                self._await(self.mesh.node(node), proxy, ready, f"{node}.log")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends everything."""
        self._stack.close()

    def curl(self, pod: str, path: str, *, limit_s: float = 5.0, discard: bool = False) -> Reply:
        """Fetches a path of the service from a pod, with the secret in a header."""
        report = self.folder / "curl.out"
        argv = [
            *("curl", "--silent", "--show-error", "--max-time", str(limit_s)),
            *("--header", f"X-Secret: {self.secret}", "--output", str(report)),
            *("--write-out", "%{local_port} %{http_code} %{time_total} %{size_download}"),
            f"http://{VIP}:{VIP_PORT}{path}",
        ]
        if discard:
            argv[argv.index(str(report))] = "/dev/null"
        report.write_bytes(b"")
        done = self.mesh.pod(pod).run(argv, check=False)
        port, status, seconds, size = done.stdout.split()
        return Reply(
            body=report.read_text(errors="replace"),
            exit_code=done.returncode,
            error=done.stderr.strip(),
            local_port=int(port),
            status=int(status),
            seconds=float(seconds),
            bytes_received=int(size),
        )

    def app_requests(self) -> list[str]:
        """The lines of the web server's own log that tell of requests from another pod."""
        lines = (self.folder / "app.log").read_text().splitlines()
        return [line for line in lines if '"GET' in line and not line.startswith("127.")]

    def _write_files(self) -> None:
        site = self.folder / "site"
        site.mkdir()
        (site / "hello").write_text(f"hello from the server, {self.secret}\n")
        with (site / "bulk").open("wb") as bulk:
            bulk.truncate(BULK_BYTES)
        (self.folder / "state.yaml").write_text(yaml.safe_dump(self._state(), sort_keys=False))
        write_root(self.folder / "root.pem", self.folder / "root.key")

    def _state(self) -> dict[str, object]:
        """The local state file: who is where, one service, one policy."""
        web = {
            "name": "web",
            "namespace": NAMESPACE,
            "hostname": SERVICE.partition("/")[2],
            "vips": [f"/{VIP}", f"/{VIP6}"],
            "ports": {VIP_PORT: APP_PORT},
        }
        callers = {
            "name": POLICY.partition("/")[2],
            "namespace": NAMESPACE,
            "scope": "WorkloadSelector",
            "action": "Allow",
            "dryRun": False,
            "rules": [
                [[{"serviceAccounts": [{"namespace": NAMESPACE, "serviceAccount": "client"}]}]]
            ],
        }
        return {
            "workloads": [self._workload(self.mesh.pod(name)) for name in PODS],
            "services": [web],
            "policies": [] if self._break == "policy" else [callers],
        }

    def _workload(self, pod: Pod) -> dict[str, object]:
        is_server = pod.name == "server"
        workload: dict[str, object] = {
            "uid": f"demo//Pod/{NAMESPACE}/{pod.name}",
            "name": pod.name,
            "namespace": NAMESPACE,
            "serviceAccount": pod.name,
            "trustDomain": "cluster.local",
            "workloadName": pod.name,
            "workloadType": "pod",
            "canonicalName": pod.name,
            "workloadIps": [pod.ipv4, pod.ipv6],
            "node": pod.node,
            "protocol": "TCP" if is_server and self._break == "plaintext" else "HBONE",
            "services": {SERVICE: {VIP_PORT: APP_PORT}} if is_server else {},
        }
        if is_server and self._break != "policy":
            workload["authorizationPolicies"] = [POLICY]
        return workload

    def _start_app(self) -> subprocess.Popen[str]:
        argv = [sys.executable, "-u", "-m", "http.server", str(APP_PORT)]
        with (self.folder / "app.log").open("w") as log:
            site = self.folder / "site"
            return self.mesh.pod("server").popen(argv, stdout=log, stderr=log, cwd=site)

    def _start_istiod(self) -> None:
        argv = [sys.executable, "-m", "tests.support.istiod", str(self.folder / "state.yaml")]
        argv += [str(self.folder), "--host", CONTROL_HOST, "--port", str(CONTROL_PORT)]
        path = self.folder / "istiod.log"
        with path.open("w") as log:
            program = self.mesh.node(NODES[0]).popen(argv, stdout=log, stderr=log, cwd=REPOSITORY)
        self._await_text(path, "https://", program)

    def _await_text(self, path: Path, text: str, program: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while text not in path.read_text(errors="replace"):
            if program.poll() is not None or time.monotonic() > deadline:
                words = path.read_text(errors="replace").strip()[-2000:]
                raise TopologyError(f"{path.stem} is not there:\n{words}")
            time.sleep(0.02)

    def lookup(self, name: str, host: str) -> list[str]:
        """The addresses that a pod is told for a host."""
        argv = [sys.executable, "-c", _LOOKUP, host, RESOLVER]
        return self.mesh.pod(name).run(argv).stdout.split()

    def _start_agent(self, node: Namespace) -> subprocess.Popen[str]:
        argv = [*OURS, "agent", "--zds", str(self._socket(node.name))]
        argv += ["--control", str(self._control(node.name))]
        argv += ["--state", str(self.folder / f"{node.name}.json")]
        with (self.folder / f"{node.name}-agent.log").open("w") as log:
            return node.popen(argv, stdout=log, stderr=log, cwd=REPOSITORY)

    def _start_proxy(self, node: Namespace) -> subprocess.Popen[str]:
        path = self.folder / f"{node.name}.log"
        for pod in self.mesh.pods.values():
            if pod.node == node.name:
                self.journals[pod.name] = Journal(path)
        argv, env = [*OURS, "proxy", "ztunnel"], self._env(node.name)
        with path.open("w") as log:
            return node.popen(argv, stdout=log, stderr=log, env=env, cwd=REPOSITORY)

    def _enroll(self, pod: Pod) -> None:
        argv = [*OURS, "enroll", pod.name, "--control", str(self._control(pod.node))]
        argv += ["--namespace", NAMESPACE, "--service-account", pod.name]
        argv += ["--netns", f"{NETNS_DIR}/{pod.netns}", "--dns"]
        self.mesh.node(pod.node).run(["env", "-C", str(REPOSITORY), *argv])

    def _socket(self, node: str) -> Path:
        return self.folder / f"{node}.zds"

    def _control(self, node: str) -> Path:
        return self.folder / f"{node}.control"

    def _env(self, node: str) -> Mapping[str, str]:
        root, address = str(self.folder / "root-cert.pem"), f"https://{CONTROL_HOST}:{CONTROL_PORT}"
        over_the_wire = {
            "XDS_ADDRESS": address,
            "XDS_ROOT_CA": root,
            "ALT_XDS_HOSTNAME": "localhost",
            "CA_ADDRESS": address,
            "CA_ROOT_CA": root,
            "ALT_CA_HOSTNAME": "localhost",
        }
        from_files = {
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": str(self.folder / "state.yaml"),
            "FAKE_CA": "true",
            "FAKE_CA_ROOT_CERT": str(self.folder / "root.pem"),
            "FAKE_CA_ROOT_KEY": str(self.folder / "root.key"),
        }
        return {
            **(over_the_wire if self.has_istiod else from_files),
            "PROXY_MODE": "shared",
            "INPOD_UDS": str(self._socket(node)),
            "NODE_NAME": node,
            "LOG_FORMAT": "json",
            "RUST_LOG": "info,ztunnel::path=debug",
        }

    def _await(self, pod: Namespace, program: subprocess.Popen[str], url: str, log: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        check = ["curl", "--silent", "--fail", "--max-time", "1", "--output", "/dev/null", url]
        while pod.run(check, check=False).returncode != 0:
            if program.poll() is not None or time.monotonic() > deadline:
                what = "ended at once" if program.poll() is not None else "was not ready in time"
                words = (self.folder / log).read_text(errors="replace").strip()[-2000:]
                raise TopologyError(f"{log.removesuffix('.log')} of {pod.name} {what}:\n{words}")
            time.sleep(0.05)


def write_root(cert_path: Path, key_path: Path) -> None:
    """Makes the certificate authority that the demo's proxies trust, for one day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                *(False, False, False, False, False, True, True, False, False),
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    key_path.touch(mode=0o600)
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    cert_path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
