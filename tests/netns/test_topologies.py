# SPDX-License-Identifier: Apache-2.0
"""Who can talk to whom, and what is written down: one node or two, in the mesh or not, services.

`client`, `near` and `far` have a proxy each; `outside` and the two bare pods are known, but have
none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.netns.app import GREETING_SIZE
from tests.netns.mesh_state import (
    APP_PORT,
    BODY,
    PodMesh,
    at,
    constant,
    fields,
    host,
    key,
    labels,
    service,
    spiffe,
    workload,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.mesh_state import Mark
    from ztunnel_py.cli.demo_mesh import Event

PODS = {
    "client": "node-a",
    "near": "node-a",
    "far": "node-b",
    "outside": "node-a",
    "bare-near": "node-a",
    "bare-far": "node-b",
}
PROXIED = ("client", "near", "far")
WEB_VIP, ALIAS = "10.96.0.10", "10.77.9.9"
NAMED, DENIED = 81, 8090
"""A service port whose target each endpoint names, and a port that a policy of `far` denies."""


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """The mesh, and a service of `near` and `far`; `far` also has an address that lies."""
    with PodMesh(PODS, tmp_path_factory.mktemp("topologies")) as mesh:
        far = mesh.pod("far")
        far.run(["ip", "address", "add", f"{ALIAS}/32", "dev", "lo"])
        for node, via in (("node-a", "10.77.0.2"), ("node-b", far.ipv4)):
            mesh.mesh.node(node).run(["ip", "route", "add", ALIAS, "via", via])
        targets = {"near": 8081, "far": 8082}
        members = {
            name: {key("web"): {80: APP_PORT, NAMED: port}} for name, port in targets.items()
        }
        alias = workload(far, uid="alias", name="alias-0", workloadIps=[ALIAS], trustDomain="else")
        mesh.know(
            [
                workload(mesh.pod("client")),
                workload(
                    mesh.pod("near"), services=members["near"], authorizationPolicies=["shop/gone"]
                ),
                workload(far, services=members["far"], authorizationPolicies=["shop/no-8090"]),
                *(workload(mesh.pod(name), protocol="TCP") for name in PODS if name not in PROXIED),
                alias,
            ],
            [service("web", WEB_VIP, {80: APP_PORT, NAMED: 0})],
            [
                {
                    "name": "no-8090",
                    "namespace": "shop",
                    "scope": "WorkloadSelector",
                    "action": "Deny",
                    "dryRun": False,
                    "rules": [[[{"destinationPorts": [DENIED]}]]],
                }
            ],
        )
        mesh.serve(*PROXIED)
        for name in ("near", "far", "bare-near", "bare-far"):
            mesh.run_app(name, "--echo", "8080", "8081", "8082", str(DENIED))
        yield mesh


def checked(
    mesh: PodMesh,
    mark: Mark,
    reporter: str,
    pods: tuple[str, str],
    is_mutual: bool,
    service: str = "",
) -> Event:
    """The access line of a connection whose line and counts tell of both sides."""
    source, target = map(mesh.pod, pods)
    line = mark.line()
    assert line["message"] == "connection complete"
    assert "error" not in line
    assert line["direction"] == {"source": "outbound", "destination": "inbound"}[reporter]
    assert constant(line) == fields(source, target, is_mutual=is_mutual, service=service)
    up, down = len(BODY), len(BODY) + GREETING_SIZE
    is_client = reporter == "source"
    assert (line["bytes_sent"], line["bytes_recv"]) == ((up, down) if is_client else (down, up))
    counted, received, sent = mark.counted()
    assert counted == labels(reporter, source, target, is_mutual=is_mutual, service=service)
    assert (received, sent) == (up, down)
    ((opened, _),) = mark.growth("connections_opened")
    assert opened == counted
    assert mark.growth("connections_failed") == []
    return line


@pytest.mark.parametrize("target", ["near", "far", "bare-near", "bare-far"])
@pytest.mark.parametrize("source", ["client", "outside"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_pods_talk_whether_or_not_they_are_in_the_mesh(
    mesh: PodMesh, source: str, target: str, family: str
) -> None:
    pods = (source, target)
    marks = {name: mesh.proxies[name].mark() for name in pods if name in PROXIED}
    is_mutual = len(marks) == 2
    here, there = (getattr(mesh.pod(name), family) for name in pods)

    with mesh.caller(source).call(there) as call:
        greeting, is_whole = call.greeting(), call.echoed()
        shown = {name: mesh.proxies[name].admin("/connections") for name in marks}

    assert (greeting, is_whole) == (f"{target}:{APP_PORT}", True)
    address = at(there, APP_PORT)
    next_hop = at(there, 15008) if is_mutual else address
    ids = set()
    for view in shown.values():
        assert [one["protocol"] for one in view] == ["HBONE" if is_mutual else "TCP"]
        ids |= {one["connectionId"] for one in view}
    if source in marks:
        line = checked(mesh, marks[source], "source", pods, is_mutual)
        assert (line["src.addr"], line["dst.addr"]) == (call.local, next_hop)
        assert line.get("dst.hbone_addr") == (address if is_mutual else None)
        assert [one["actualDst"] for one in shown[source]] == [next_hop]
        ids.add(line["connection.id"])
    if target in marks:
        line = checked(mesh, marks[target], "destination", pods, is_mutual)
        assert str(line["src.addr"]).startswith(at(here, 0)[:-1])
        assert line["dst.addr"] == next_hop
        assert [one["actualDst"] for one in shown[target]] == [address]
        ids.add(line["connection.id"])
    assert len(ids) == (1 if marks else 0)


@pytest.mark.parametrize(
    ("port", "answers"),
    [
        (80, {"near:8080", "far:8080"}),
        (NAMED, {"near:8081", "far:8082"}),
    ],
    ids=["numeric", "named"],
)
def test_service_spreads_over_its_endpoints_at_their_ports(
    mesh: PodMesh, port: int, answers: set[str]
) -> None:
    heard: dict[str, tuple[str, str]] = {}
    client = mesh.proxies["client"]

    for _ in range(40):
        mark = client.mark()
        with mesh.caller("client").call(WEB_VIP, port) as call:
            greeting = call.greeting()
            assert call.echoed()
        if greeting not in heard:
            name = greeting.partition(":")[0]
            line = checked(mesh, mark, "source", ("client", name), True, "web")
            heard[greeting] = str(line["dst.addr"]), str(line["dst.hbone_addr"])
        if heard.keys() == answers:
            break
        mark.line()

    assert heard == {
        f"{name}:{target}": (f"{mesh.ip(name)}:15008", f"{mesh.ip(name)}:{target}")
        for name, _, target in (answer.partition(":") for answer in answers)
    }


def test_service_port_that_is_not_there_reaches_nobody(mesh: PodMesh) -> None:
    mark = mesh.proxies["client"].mark()

    with mesh.caller("client").call(WEB_VIP, 82) as call:
        assert call.read() == (b"", "fin")

    assert mark.line()["error"] == f"no healthy upstream: {WEB_VIP}:82"
    assert mark.growth("connections_opened") == []


def test_denial_by_policy_is_401_at_the_client_and_deny_at_the_server(mesh: PodMesh) -> None:
    at_client, at_server = (mesh.proxies[name].mark() for name in ("client", "far"))
    pods = mesh.pod("client"), mesh.pod("far")

    with mesh.caller("client").call(mesh.ip("far"), DENIED) as call:
        assert call.read() == (b"", "fin")

    assert at_client.line()["error"] == "http status: 401 Unauthorized"
    line = at_server.line()
    assert line["error"] == (
        "connection closed due to policy rejection: explicitly denied by: shop/no-8090"
    )
    assert constant(line) == fields(*pods, is_mutual=True)
    assert at_client.counted()[0] == labels("source", *pods, is_mutual=True, flags="CONNECT")
    denied = labels("destination", *pods, is_mutual=True, flags="DENY")
    assert at_server.counted()[0] == denied
    assert at_server.growth("connections_failed") == [(denied, 1)]


@pytest.mark.spec("state-99")
def test_policy_that_is_unknown_is_skipped_with_a_warning(mesh: PodMesh) -> None:
    with mesh.caller("client").call(mesh.ip("near")) as call:
        assert call.greeting() == f"near:{APP_PORT}"

    warning = mesh.proxies["near"].journal.wait(
        lambda event: event["message"] == "skipping unknown policy shop/gone"
    )
    assert warning is not None
    assert warning["level"] == "warn"


def test_server_of_another_trust_domain_than_expected_is_not_believed(mesh: PodMesh) -> None:
    at_client, at_server = (mesh.proxies[name].mark() for name in ("client", "far"))

    with mesh.caller("client").call(ALIAS) as call:
        assert call.read() == (b"", "fin")

    line = at_client.line()
    assert line["dst.identity"] == spiffe("far").replace("cluster.local", "else")
    assert line["error"].startswith("io error: ")
    assert "identity verification error" in line["error"]
    assert [flags["response_flags"] for flags, _ in at_client.growth("connections_failed")] == [
        "CONNECT"
    ]
    assert at_server.growth("connections_opened") == []


def test_client_of_another_trust_domain_is_not_let_in(mesh: PodMesh) -> None:
    at_server = mesh.proxies["far"].mark()

    with mesh.caller("outside").call(mesh.ip("far"), 15008) as call:
        call.tls(mesh.pem("client", domain="else"))
        answer = call.request(f"{mesh.ip('far')}:{APP_PORT}")

    assert not answer.isdecimal()
    line = at_server.line()
    assert line["message"] == "connection failed"
    assert line["error"].startswith("tls handshake error: ")
    assert at_server.growth("connections_opened") == []


@pytest.mark.parametrize(
    ("authority", "status", "error"),
    [
        ("{far}:8080", "200", ""),
        ("{near}:8080", "400", "ip mismatch: {far} != {near}"),
        (f"{WEB_VIP}:80", "400", "ip mismatch: {far} != " + WEB_VIP),
        (f"{host('web')}:80", "200", ""),
        (f"{host('web')}:{NAMED}", "200", ""),
        (
            f"{host('web')}:82",
            "503",
            f"requested service {host('web')}:82 found, but cannot resolve port",
        ),
        ("none.shop:80", "503", "no service or workload for hostname: none.shop"),
        ("far", "400", "no valid authority pseudo header: far"),
        ("{far}:15006", "503", "attempted recursive call to ourselves"),
        ("{far}:9", "503", "connection failed: Connection refused (os error 111)"),
        (f"{{far}}:{DENIED}", "401", "connection closed due to policy rejection: "),
    ],
)
def test_authority_says_where_to_and_nowhere_else(
    mesh: PodMesh, authority: str, status: str, error: str
) -> None:
    addresses = {name: mesh.ip(name) for name in ("far", "near")}
    mark = mesh.proxies["far"].mark()

    with mesh.hbone("outside", "far") as tunnel:
        answer = tunnel.request(authority.format(**addresses))

    assert answer == status
    line = mark.line()
    assert str(line.get("error", "")).startswith(error.format(**addresses))
    assert (line["message"] == "connection failed") == (
        status in ("400", "503") and "Connection refused" not in error
    )


def test_a_stream_of_a_named_port_is_the_endpoints_own(mesh: PodMesh) -> None:
    mark = mesh.proxies["far"].mark()
    before = [e["port"] for e in mesh.apps["far"].events() if e["event"] == "tcp"]

    with mesh.hbone("outside", "far") as tunnel:
        assert tunnel.request(f"{host('web')}:{NAMED}") == "200"

    line = mark.line()
    assert line["dst.hbone_addr"] == f"{host('web')}:{NAMED}"
    assert line["dst.service"] == host("web")
    ports = [e["port"] for e in mesh.apps["far"].events() if e["event"] == "tcp"]
    assert ports[len(before) :] == [8082]


def test_config_dump_shows_the_mesh_and_the_own_certificate(mesh: PodMesh) -> None:
    dump = mesh.proxies["far"].admin("/config_dump")

    assert {one["name"] for one in dump["workloads"]} >= {f"{name}-0" for name in PODS}
    assert [one["hostname"] for one in dump["services"]] == [host("web")]
    assert [one["name"] for one in dump["policies"]] == ["no-8090"]
    assert {one["identity"] for one in dump["certificates"]} == {spiffe("far")}
