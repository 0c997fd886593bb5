# SPDX-License-Identifier: Apache-2.0
"""What strangers try at every port of a proxy, from outside of its pod and from inside.

Whatever they do, the application hears of nobody but the client that its policy admits, the proxy
goes on serving, and nothing of theirs stays open.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.netns.mesh_state import APP_PORT, Call, PodMesh, spiffe, wait, workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.netns.mesh_state import Proxy

    Probe = Callable[[PodMesh, Call], str]

PODS = {"client": "node-a", "attacker": "node-a", "victim": "node-b"}
PORTS = (15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080)
LOOPBACK = "127.0.0.1"
PATIENCE_S, HELD_S = 5.0, 0.2
GARBAGE = bytes(range(256)) * 8
GET = b"GET / HTTP/1.1\r\nHost: victim\r\n\r\n"
LARGE = b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"
CLIENT_HELLO = bytes.fromhex("16030100c0010000bc0303") + bytes(20)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
SMUGGLED = (
    b"POST / HTTP/1.1\r\nHost: victim\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)
_STATUS_SIZE = len("HTTP/1.1 400")


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """A victim whose application admits `client`; nobody knows the attacker."""
    with PodMesh(PODS, tmp_path_factory.mktemp("probes")) as mesh:
        admits_client = {
            "name": "client-only",
            "namespace": "shop",
            "scope": "WorkloadSelector",
            "action": "Allow",
            "dryRun": False,
            "rules": [[[{"principals": [{"Exact": spiffe("client").removeprefix("spiffe://")}]}]]],
        }
        victim = workload(mesh.pod("victim"), authorizationPolicies=["shop/client-only"])
        mesh.know([workload(mesh.pod("client")), victim], [], [admits_client])
        mesh.serve("client", "victim", UNSTABLE_ENABLE_SOCKS5="true")
        mesh.run_app("victim", "--echo", str(APP_PORT))
        serves(mesh)
        yield mesh


def serves(mesh: PodMesh) -> None:
    """The client that is admitted is served."""
    with mesh.caller("client").call(mesh.ip("victim")) as call:
        assert call.greeting() == f"victim:{APP_PORT}"


# --- probes: each says what came of it


def says(data: bytes, wait_s: float = PATIENCE_S) -> Probe:
    """Sends bytes as they are."""

    def probe(_mesh: PodMesh, call: Call) -> str:
        call.send(data)
        answer = call.read(_STATUS_SIZE, wait_s)
        if answer.data.startswith(b"HTTP/"):
            return answer.data.decode().partition(" ")[2]
        if answer.data[:1] == b"\x15":
            return "closed"  # with a TLS alert
        if answer.data:
            return answer.data.hex()
        return "held" if answer.ended == "silence" else "closed"

    return probe


def asks(
    authority: str,
    *more: tuple[str, str],
    method: str = "CONNECT",
    account: str = "",
    root: str = "root",
    domain: str = "cluster.local",
    alpn: str = "h2",
) -> Probe:
    """Opens a tunnel, with the certificate of an account if one is named, and asks for a stream."""

    def probe(mesh: PodMesh, call: Call) -> str:
        pem = mesh.pem(account, root=root, domain=domain) if account else ""
        if call.tls(pem, alpn):
            return "closed"
        answer = call.request(authority.format(ip=mesh.ip("victim")), *more, method=method)
        if answer == "silence":
            return "held"
        return answer if answer.isdecimal() or answer.startswith("stream") else "closed"

    return probe


def socks(*parts: bytes) -> Probe:
    """Speaks SOCKS5; what the last part was answered with."""

    def probe(mesh: PodMesh, call: Call) -> str:
        for part in parts[:-1]:
            call.send(part)
            assert call.read(2).data == b"\x05\x00"
        call.send(parts[-1].replace(POD, bytes(map(int, mesh.ip("victim").split(".")))))
        answer = call.read(1 << 10, PATIENCE_S)
        assert answer.ended in ("fin", "reset"), answer
        return answer.data.hex()

    return probe


POD = b"pod."
"""Stands for the victim's address."""
HELLO, TO = b"\x05\x01\x00", b"\x05\x01\x00\x01"
VIOLATION, ACCEPTED = "05070001000000000000", "05000001000000000000"
APP = "{ip}:8080"
STRANGER = {"account": "stranger"}

SOCKS_TO_ITSELF = socks(HELLO, TO + POD + APP_PORT.to_bytes(2, "big"))

OUTSIDE: list[tuple[str, int, Probe, str]] = [
    *((f"garbage at {port}", port, says(GARBAGE), "closed") for port in PORTS),
    *((f"HTTP/1.1 at {port}", port, says(GET), "closed") for port in PORTS),
    ("plaintext for the application", APP_PORT, says(b"hello"), "closed"),
    ("HTTP/2 without TLS", 15008, says(PREFACE), "closed"),
    ("half a ClientHello", 15008, says(CLIENT_HELLO, HELD_S), "held"),
    ("no word at all", 15008, says(b"", HELD_S), "held"),
    ("no certificate", 15008, asks(APP), "closed"),
    ("certificate of another root", 15008, asks(APP, account="client", root="own"), "closed"),
    ("certificate of another domain", 15008, asks(APP, account="client", domain="x"), "closed"),
    ("certificate without HTTP/2", 15008, asks(APP, **STRANGER, alpn="http/1.1"), "closed"),
    ("identity that is not admitted", 15008, asks(APP, **STRANGER), "401"),
    *((f"stream to {p}", 15008, asks(f"{{ip}}:{p}", account="client"), "503") for p in PORTS[1:4]),
    ("stream to 15080", 15008, asks("{ip}:15080", account="client"), "503"),
    ("stream to the admin port", 15008, asks("{ip}:15000", account="client"), "503"),
    ("stream to the metrics", 15008, asks("{ip}:15020", **STRANGER), "401"),
    ("stream to loopback", 15008, asks("127.0.0.1:15000", account="client"), "400"),
    ("stream to another pod", 15008, asks("10.77.1.10:8080", account="client"), "400"),
    ("stream to nowhere", 15008, asks("victim", account="client"), "400"),
    ("GET instead of CONNECT", 15008, asks(APP, account="client", method="GET"), "stream reset 1"),
    ("oversized header", 15008, asks(APP, ("x", "a" * 100_000), account="client"), "431"),
    ("header that smuggles", 15008, asks(APP, (":path", "/"), account="client"), "stream reset 1"),
    (
        "word of a better identity",
        15008,
        asks(APP, ("x-forwarded-client-cert", f"URI={spiffe('client')}"), **STRANGER),
        "401",
    ),
]

INSIDE: list[tuple[str, int, Probe, str]] = [
    ("garbage at 15000", 15000, says(GARBAGE), "400"),
    ("garbage at 15020", 15020, says(GARBAGE), "400"),
    ("garbage at 15021", 15021, says(GARBAGE), "400"),
    *((f"garbage at {port}", port, says(GARBAGE), "closed") for port in (15001, 15006, 15008)),
    *((f"HTTP/1.1 at {port}", port, says(GET), "closed") for port in (15001, 15006, 15008)),
    *((f"oversized header at {p}", p, says(LARGE), "400") for p in (15000, 15020, 15021)),
    ("two lengths at the admin port", 15000, says(SMUGGLED), "400"),
    ("half a request at the admin port", 15000, says(GET[:20], HELD_S), "held"),
    ("half a ClientHello at the metrics", 15020, says(CLIENT_HELLO), "400"),
    ("no DNS", 15053, says(GARBAGE), "ConnectionRefusedError"),
    ("tunnel to itself", 15008, asks(APP, account="victim"), "400"),
    ("SOCKS of version 4", 15080, socks(b"\x04\x01\x00"), VIOLATION),
    ("SOCKS without a method", 15080, socks(b"\x05\x00"), VIOLATION),
    ("SOCKS by BIND", 15080, socks(HELLO, b"\x05\x02\x00\x01" + bytes(6)), VIOLATION),
    ("SOCKS half-open", 15080, says(b"\x05", HELD_S), "held"),
    (
        "SOCKS to the proxy itself",
        15080,
        socks(HELLO, TO + b"\x7f\0\0\1" + (15008).to_bytes(2, "big")),
        ACCEPTED,
    ),
    ("SOCKS to the application as its own pod", 15080, SOCKS_TO_ITSELF, ACCEPTED),
]


def rows() -> Iterator[object]:
    for source, address, table in (("attacker", "", OUTSIDE), ("victim", LOOPBACK, INSIDE)):
        for name, port, probe, outcome in table:
            where = "outside" if source == "attacker" else "inside"
            yield pytest.param(source, address, port, probe, outcome, id=f"{where}: {name}")


@pytest.fixture(scope="module")
def quiet(mesh: PodMesh) -> int:
    """How many files the victim's proxy has open when nobody bothers it."""
    victim = mesh.proxies["victim"]
    with mesh.caller("victim").call(LOOPBACK, 15080) as call:
        SOCKS_TO_ITSELF(mesh, call)  # leaves a tunnel to itself in the pool
    victim.mark()
    return victim.descriptors()


@pytest.mark.parametrize(("source", "address", "port", "probe", "outcome"), [*rows()])
def test_probe_gets_no_further_and_leaves_nothing_behind(
    mesh: PodMesh, quiet: int, source: str, address: str, port: int, probe: Probe, outcome: str
) -> None:
    victim = mesh.proxies["victim"]
    heard = len(arrivals(mesh))

    call = mesh.caller(source).dial(address or mesh.ip("victim"), port)
    if isinstance(call, Call):
        with call:
            found = probe(mesh, call)
            serves(mesh)
    else:
        found = call
        serves(mesh)

    assert found == outcome
    assert arrivals(mesh)[heard:] == [mesh.ip("client")]
    wait(lambda: victim.descriptors() <= quiet, "the probe's sockets to close")
    assert_sound(victim)


def arrivals(mesh: PodMesh) -> list[str]:
    """Who has come to the application."""
    return [e["source"][0] for e in mesh.apps["victim"].events() if e["event"] == "tcp"]


def assert_sound(proxy: Proxy) -> None:
    """It runs, and nothing in it came as a surprise."""
    assert proxy.program.poll() is None
    assert not re.search("Traceback|internal error", proxy.journal.path.read_text())


def test_crowd_that_says_nothing_keeps_nobody_out(mesh: PodMesh, quiet: int) -> None:
    victim = mesh.proxies["victim"]
    calls = [mesh.caller("attacker").call(mesh.ip("victim"), 15008) for _ in range(200)]
    for call in calls[::2]:
        call.send(CLIENT_HELLO)

    serves(mesh)
    for call in calls:
        call.close()

    wait(lambda: victim.descriptors() <= quiet, "the crowd's sockets to close")
    assert_sound(victim)


def test_metrics_and_admin_still_answer(mesh: PodMesh) -> None:
    victim = mesh.proxies["victim"]

    assert {line["name"] for line in victim.admin("/config_dump")["workloads"]} == {
        "client-0",
        "victim-0",
    }
    assert victim.samples()
    assert mesh.caller("victim").get(15021, "/healthz/ready") == "ready\n"
