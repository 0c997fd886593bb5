# SPDX-License-Identifier: Apache-2.0
"""The `demo` command: builds a mesh of two nodes, sends real traffic and shows what happened to it.

Whatever is printed comes from curl, from what the proxies logged, or from the capture of the wire.
A step whose evidence is missing or wrong fails, and with it the command.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from ztunnel_py.cli.demo_mesh import (
    APP_PORT,
    CONTROL_HOST,
    CONTROL_PORT,
    HOST,
    POLICY,
    RESOLVER,
    VIP,
    VIP6,
    VIP_PORT,
    DemoMesh,
)
from ztunnel_py.cli.demo_wire import HBONE_PORT, Capture, inspect
from ztunnel_py.cli.topology import NamespacesForbiddenError, TopologyError, add_system_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.cli.demo_mesh import Event, Reply

TOOLS = {
    "ip": "iproute2",
    "iptables": "iptables",
    "curl": "curl",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
EXIT_FORBIDDEN = 77
TRANSFER_LIMIT_S = 3.0
CURL_TIME_OVER = 28
REJECTED = "connection closed due to policy rejection"
BARE_FIELDS = {"src.addr", "dst.addr", "dst.hbone_addr"}  # not quoted in the plain form


class StepFailedError(Exception):
    """What a step had to show is missing or wrong; the text says what."""


class Screen:
    """Prints, in colour on a terminal."""

    def __init__(self) -> None:
        self._has_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def title(self, text: str) -> None:
        """The heading of a step."""
        print(f"\n{self._paint('1', text)}", flush=True)

    def line(self, text: str) -> None:
        """One finding."""
        print(f"  {text}", flush=True)

    def passed(self, text: str) -> None:
        """The conclusion of a step that succeeded."""
        print(f"  {self._paint('32', 'ok')}  {text}", flush=True)

    def failed(self, text: str) -> None:
        """The conclusion of one that did not."""
        print(f"  {self._paint('31', 'FAILED')}  {text}", flush=True)

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._has_colour else text


class Tour:
    """The steps of the demo, in the order in which they are shown."""

    def __init__(self, demo: DemoMesh, screen: Screen) -> None:
        self._demo = demo
        self._screen = screen
        self._reply: Reply | None = None

    def run(self) -> list[str]:
        """Shows every step and returns the titles of those that failed."""
        steps: dict[str, Callable[[], None]] = {
            "A name": self._name,
            "A request from client to server": self._request,
            "Its path": self._path,
            "Access log": self._access_log,
            "The wire between the nodes": self._wire,
            "Another service account": self._intruder,
            "Throughput": self._throughput,
        }
        failed = []
        for title, step in steps.items():
            self._screen.title(title)
            try:
                step()
            except (StepFailedError, TopologyError) as exc:
                self._screen.failed(str(exc))
                failed.append(title)
        return failed

    def _name(self) -> None:
        pod, found = self._demo.mesh.pod("client"), self._demo.lookup("client", HOST)
        self._screen.line(f"{pod.name} ({pod.ipv4}) $ dig @{RESOLVER} {HOST}")
        require(found == [VIP, VIP6], f"the answer was {found}")
        self._screen.passed(f"{' and '.join(found)}, from its own node; {RESOLVER} does not exist")

    def _request(self) -> None:
        demo, pod = self._demo, self._demo.mesh.pod("client")
        with Capture(demo.mesh.node("node-a"), demo.folder / "wire.pcap"):
            self._reply = reply = demo.curl("client", "/hello")
        self._screen.line(f"{pod.name} ({pod.ipv4}) $ curl http://{VIP}:{VIP_PORT}/hello")
        require(reply.exit_code == 0, reply.error)
        require(reply.status == 200, f"the answer was {reply.status}")
        require(demo.secret in reply.body, f"this is not the server's text: {reply.body!r}")
        seen = [line for line in demo.app_requests() if "/hello" in line]
        require(bool(seen), "the application's log has no such request")
        self._screen.line(f"the server's own log: {seen[0]}")
        require(seen[0].startswith(f"{pod.ipv4} "), "the application did not see the client's IP")
        took = reply.seconds * 1000
        self._screen.passed(f"{reply.status}, {reply.bytes_received} bytes in {took:.1f} ms")

    def _path(self) -> None:
        out = self._client_event("ztunnel::path", "src")
        self._screen.line("client's proxy, milliseconds since it accepted the connection")
        self._hop(out, "accepted_us", "captured on 15001: {src} wants {original_dst}")
        self._hop(out, "decided_us", "service and workload found: {authority}, by {protocol}")
        require(out["original_dst"] == f"{VIP}:{VIP_PORT}", "the original destination is wrong")
        server = f"{self._demo.mesh.pod('server').ipv4}:{APP_PORT}"
        require(out["authority"] == server, f"the workload found is not {server}")
        self._hop(out, "tunnel_us", "{tunnel} tunnel to {next_hop}")
        require(out["next_hop"].endswith(f":{HBONE_PORT}"), "the next hop is not an HBONE port")
        self._screen.line("           as {identity}".format_map(_Fields(out)))
        self._screen.line("           server proved {peer_identity}".format_map(_Fields(out)))
        self._hop(out, "connected_us", "stream accepted by the server's proxy")
        self._screen.line("server's proxy, milliseconds since the stream was opened")
        into = self._server_event("ztunnel::path", "peer_identity", str(out["identity"]))
        self._hop(into, "accepted_us", "stream for {authority} from {src}")
        self._screen.line("           client proved {peer_identity}".format_map(_Fields(into)))
        require(into["authority"] == server, "the two proxies name different destinations")
        require(into.get("identity") == out["peer_identity"], "the server has another identity")
        self._hop(into, "decided_us", "policy: {policy}")
        require(POLICY in into["policy"], f"the policy {POLICY} did not decide")
        self._hop(into, "connected_us", "application connected at {app}")
        for event in (out, into):
            require(event.get("result") == "ok", f"it ended with: {event.get('result')}")
        self._hop(into, "closed_us", "closed")
        self._screen.passed("both ends authenticated, allowed by policy, delivered")

    def _access_log(self) -> None:
        ours = self._client_event("access", "src.addr")
        theirs = self._server_event("access", "src.identity", ours.get("src.identity", ""))
        for name, event in (("client", ours), ("server", theirs)):
            self._screen.line(f"{name}'s proxy: {plain(event)}")
            require(event["message"] == "connection complete", "the connection failed")
            require("error" not in event, "the connection ended with an error")
        same = ours.get("dst.identity") == theirs.get("dst.identity")
        require(same, "the two proxies name different servers")
        self._screen.passed("one line from each proxy, for the same connection")

    def _wire(self) -> None:
        capture = self._demo.folder / "wire.pcap"
        require(capture.exists(), "there is no capture")
        try:
            control = CONTROL_PORT if self._demo.has_istiod else None
            wire = inspect(capture.read_bytes(), self._demo.secret.encode(), control)
        except ValueError as exc:
            raise StepFailedError(f"{capture.name}: {exc}") from exc
        self._screen.line(f"{wire.packets} TCP packets, {wire.payload_bytes} bytes of payload")
        counts = ", ".join(f"{count} {name}" for name, count in wire.records.items())
        self._screen.line(f"TLS records: {counts or 'none'}")
        require(not wire.faults, "; ".join(wire.faults))
        also = f" and {CONTROL_PORT}" if self._demo.has_istiod else ""
        self._screen.passed(
            f"nothing but TLS on port {HBONE_PORT}{also}; the request's secret is unreadable"
        )

    def _intruder(self) -> None:
        reply = self._demo.curl("intruder", "/hello")
        pod = self._demo.mesh.pod("intruder")
        self._screen.line(f"{pod.name} ({pod.ipv4}) $ curl http://{VIP}:{VIP_PORT}/hello")
        require(reply.exit_code != 0, f"it was served: {reply.status}, {reply.body.strip()!r}")
        self._screen.line(reply.error)
        event = self._demo.journals["server"].wait(
            lambda event: (
                event.get("scope") == "access"
                and event.get("direction") == "inbound"
                and str(event.get("src.addr", "")).startswith(f"{pod.ipv4}:")
                and "error" in event
            )
        )
        require(event is not None, "the server's proxy logged no refusal for that address")
        assert event is not None
        self._screen.line(f"server's proxy: {plain(event)}")
        require(event["error"].startswith(REJECTED), "that is not a rejection by policy")
        self._screen.passed(f"refused: {event['error']}")

    def _throughput(self) -> None:
        reply = self._demo.curl("client", "/bulk", limit_s=TRANSFER_LIMIT_S, discard=True)
        require(reply.exit_code in (0, CURL_TIME_OVER), reply.error)
        require(reply.status == 200, f"the answer was {reply.status}")
        require(reply.bytes_received > 0, "no byte arrived")
        self._reply = reply
        event = self._client_event("access", "src.addr")
        hop = str(event.get("dst.addr"))
        require(hop.endswith(f":{HBONE_PORT}"), f"it went to {hop}, not through a tunnel")
        mebibytes = reply.bytes_received / (1 << 20)
        rate = reply.bytes_received * 8 / reply.seconds / 1e6
        self._screen.passed(
            f"{mebibytes:.0f} MiB in {reply.seconds:.2f} s: {rate:.0f} Mbit/s on one connection, "
            f"through {hop}"
        )

    def _client_event(self, scope: str, source_key: str) -> Event:
        """What the client's proxy logged about the latest request, found by curl's own port."""
        require(self._reply is not None and self._reply.local_port != 0, "there was no connection")
        assert self._reply is not None
        source = f"{self._demo.mesh.pod('client').ipv4}:{self._reply.local_port}"
        event = self._demo.journals["client"].wait(
            lambda event: event.get("scope") == scope and event.get(source_key) == source
        )
        require(event is not None, f"the client's proxy logged no '{scope}' line for {source}")
        assert event is not None
        return event

    def _server_event(self, scope: str, identity_key: str, identity: str) -> Event:
        """What the server's proxy logged first about a stream from this identity."""
        event = self._demo.journals["server"].wait(
            lambda event: (
                event.get("scope") == scope
                and event.get("direction") == "inbound"
                and event.get(identity_key) == identity
            )
        )
        missing = f"the server's proxy logged no '{scope}' line with {identity_key} {identity}"
        require(event is not None and bool(identity), missing)
        assert event is not None
        return event

    def _hop(self, event: Event, time_key: str, text: str) -> None:
        require(time_key in event, f"the proxy's path line has no {time_key}")
        shown = text.format_map(_Fields(event))
        self._screen.line(f"{event[time_key] / 1000:9.3f}  {shown}")


class _Fields(dict[str, object]):
    """The fields of a log line; a missing one fails the step that wants to show it."""

    def __missing__(self, name: str) -> object:
        raise StepFailedError(f"the proxy's path line has no {name}")


def require(holds: bool, otherwise: str) -> None:
    """Fails the step, with this reason, if what it has to show does not hold."""
    if not holds:
        raise StepFailedError(otherwise)


def plain(event: Event) -> str:
    """A JSON log line in the readable form that LOG_FORMAT=plain has."""
    fields = {name: value for name, value in event.items() if name not in _LINE_HEAD}
    pairs = [
        f'{name}="{value}"'
        if isinstance(value, str) and name not in BARE_FIELDS
        else f"{name}={value}"
        for name, value in fields.items()
    ]
    return " ".join([*(str(event.get(name, "")) for name in _LINE_HEAD), *pairs])


_LINE_HEAD = ("time", "level", "scope", "message")


@click.command()
@click.option("--stay", is_flag=True, help="keep the mesh up until Ctrl-C")
@click.option(
    "--break",
    "break_",
    type=click.Choice(["policy", "plaintext"]),
    help="leave one piece out, to see the demo fail: the policy, or HBONE",
)
@click.option(
    "--istiod",
    is_flag=True,
    help="state and certificates come over the wire, from a control plane for tests",
)
def demo(break_: str | None, *, stay: bool, istiod: bool) -> int:
    """Build a two-node mesh and send traffic.

    In namespaces of its own; shows what happened, and leaves nothing behind.

    Exit status: 0, 1 if a step failed, 77 if the kernel forbids namespaces.
    """
    add_system_path()
    missing = {tool: package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        print(f"demo: missing {', '.join(missing)}; apt-get install {packages}", file=sys.stderr)
        return 1
    try:
        return _demonstrate(break_, stay=stay, istiod=istiod)
    except NamespacesForbiddenError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return EXIT_FORBIDDEN
    except TopologyError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _demonstrate(break_: str | None, *, stay: bool, istiod: bool) -> int:
    started = time.monotonic()
    screen = Screen()
    with DemoMesh(break_, istiod=istiod) as demo:
        took = time.monotonic() - started
        screen.title(f"Two nodes, each with a proxy for its pods ({took:.1f} s)")
        for pod in demo.mesh.pods.values():
            screen.line(f"{pod.node}: {pod.name:<9} {pod.ipv4}  {pod.ipv6}")
        if istiod:
            screen.line(f"node-a: istiod    {CONTROL_HOST}:{CONTROL_PORT}")
        failed = Tour(demo, screen).run()
        took = time.monotonic() - started
        if failed:
            print(f"\ndemo failed after {took:.1f} s: {', '.join(failed)}", file=sys.stderr)
        else:
            print(f"\nall steps succeeded in {took:.1f} s", flush=True)
        if stay:
            _stay(demo, screen)
    return 1 if failed else 0


def _stay(demo: DemoMesh, screen: Screen) -> None:
    """Lists commands to try and waits for Ctrl-C."""

    def command(name: str, *argv: str) -> str:
        space = demo.mesh.nodes.get(name) or demo.mesh.pod(name)
        if demo.mesh.realm.is_root:
            return shlex.join(["ip", "netns", "exec", space.netns, *argv])
        return shlex.join(space.command(argv))

    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for `demo &`
    screen.title("Try, from another shell; Ctrl-C here ends the mesh")
    url = f"http://{VIP}:{VIP_PORT}/hello"
    screen.line(command("client", "curl", url))
    screen.line(command("intruder", "curl", url))
    screen.line(command("node-a", "curl", "http://127.0.0.1:15000/config_dump"))
    screen.line(command("node-b", "curl", "http://127.0.0.1:15020/metrics"))
    screen.line(command("client", "iptables", "-t", "nat", "-nvL"))
    screen.line(f"tail -f {demo.folder}/*.log")
    try:
        signal.pause()
    except KeyboardInterrupt:
        screen.line("ending")
