# SPDX-License-Identifier: Apache-2.0
"""One proxy for all pods of a node, as an agent tells it: each in its own namespace."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.netns.mesh_state import (
    APP_PORT,
    NAMESPACE,
    PodMesh,
    at,
    constant,
    fields,
    key,
    service,
    spiffe,
    wait,
    workload,
)
from tests.netns.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.cli.topology import Pod

PODS = {
    **dict.fromkeys(("cart", "web", "shelf"), "node-a"),
    **dict.fromkeys(("prices", "stock", "spare"), "node-b"),
}
VIP = "10.96.0.10"
SILENCE = "table ip silent { chain c { type filter hook input priority 0; tcp dport 9999 drop; }; }"


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """Two nodes; applications in all pods but the spare one."""
    with PodMesh(PODS, tmp_path_factory.mktemp("inpod")) as mesh:
        mesh.know(
            [
                workload(
                    mesh.pod(name),
                    services={key("prices"): {80: APP_PORT}} if name == "prices" else {},
                )
                for name in PODS
            ],
            [service("prices", VIP, {80: APP_PORT})],
        )
        for name in ("cart", "web", "prices"):
            mesh.run_app(name, "--echo", str(APP_PORT))
        yield mesh


@pytest.fixture
def nodes(mesh: PodMesh) -> Iterator[tuple[Node, Node]]:
    """Both nodes with their agents, and no proxy."""
    with Node(mesh, "node-a") as first, Node(mesh, "node-b") as second:
        yield first, second


def listening(pod: Pod) -> list[str]:
    """Lines of `ss` about our listeners in a pod."""
    lines = pod.run(["ss", "-Htlnep"]).stdout.splitlines()
    return [line for line in lines if line.split()[3].rpartition(":")[2].startswith("150")]


def taken(pid: int, descriptor: int) -> socket.socket:
    """A copy of another program's socket."""
    pidfd_getfd, program = 438, os.pidfd_open(pid)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(pidfd_getfd, program, descriptor, 0)
    finally:
        os.close(program)
    assert copy >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=copy)


@pytest.mark.spec("dataplane-57")
@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy", "nft"])
def test_pods_of_two_nodes_talk_each_with_its_own_identity(
    mesh: PodMesh, nodes: tuple[Node, Node], engine: str, backend: str
) -> None:
    first, second = nodes
    cart, web, shelf, prices, stock, spare = map(mesh.pod, PODS)
    here = first.serve(cart, web, shelf, backend=backend, ZTUNNEL_DATAPLANE=engine)
    there = second.serve(prices, stock, spare, backend=backend, ZTUNNEL_DATAPLANE=engine)

    for client in (cart, web, shelf):
        for family in ("ipv4", "ipv6"):
            marks = here.mark(), there.mark()
            target = getattr(prices, family)
            with mesh.caller(client.name).call(target) as call:
                assert call.greeting() == f"prices:{APP_PORT}"
                assert call.echoed()
            outbound, inbound = (mark.line() for mark in marks)
            assert constant(outbound) == constant(inbound) == fields(client, prices, is_mutual=True)
            assert outbound["dst.addr"] == at(target, 15008)
            assert str(inbound["src.addr"]).startswith(at(getattr(client, family), 0)[:-1])
            peer = mesh.apps["prices"].events()[-1]["source"][0]
            assert peer == getattr(client, family), "the application sees the client"

    tunnels = [(one["workload"], one["identity"]) for one in there.admin("/tunnels")]
    assert set(tunnels) == {("prices", spiffe(name)) for name in ("cart", "shelf", "web")}
    outbound_tunnels = [one["workload"] for one in here.admin("/tunnels")]
    counts = {name: outbound_tunnels.count(name) for name in ("cart", "shelf", "web")}
    assert set(counts.values()) == {2}, "one per family"
    with mesh.caller("cart").call(VIP, 80) as call:
        assert call.greeting() == f"prices:{APP_PORT}"
    with mesh.caller("cart").call(web.ipv4) as call:
        assert call.greeting() == f"web:{APP_PORT}"
    identities = {one["identity"] for one in here.admin("/config_dump")["certificates"]}
    assert identities == {spiffe("cart"), spiffe("shelf"), spiffe("web")}
    for pod in map(mesh.pod, PODS):
        pod.unenrol()


@pytest.mark.spec("ops-60", "ops-74", "dataplane-1")
def test_listeners_exist_when_the_pod_is_acknowledged_marked_and_shared(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart = mesh.pod("cart")
    proxy = nodes[0].start()
    nodes[0].agent.meet()

    assert nodes[0].agent.add(cart) == ""

    found = listening(cart)
    ports = {int(line.split()[3].rpartition(":")[2]) for line in found}
    assert ports == {15001, 15006, 15008}
    assert all("fwmark:0x539" in line for line in found), found
    assert {line.split()[2] for line in found} == {"1024"}  # the backlog; decision 0016
    for line in found:
        with taken(proxy.program.pid, int(line.partition(",fd=")[2].partition(")")[0])) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 1337
    assert not listening(mesh.pod("web"))
    assert proxy.metric("workload_manager_active_proxy_count") == 1
    assert proxy.metric("workload_manager_proxies_started_total") == 1


@pytest.mark.spec("ops-75")
def test_two_proxies_may_serve_one_pod(mesh: PodMesh, nodes: tuple[Node, Node]) -> None:
    cart = mesh.pod("cart")
    nodes[0].serve(cart)
    with Node(mesh, "node-b") as elsewhere:  # the admin ports of node-a are taken
        proxy = elsewhere.start()
        elsewhere.agent.meet()
        assert elsewhere.agent.add(cart) == ""
        assert len(listening(cart)) == 6
        assert proxy.program.poll() is None


@pytest.mark.spec("ops-74", "ops-75", "dataplane-2")
def test_without_port_reuse_a_second_proxy_is_refused(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart = mesh.pod("cart")
    for node in nodes:
        node.start(INPOD_PORT_REUSE="false")
        node.agent.meet()
    assert nodes[0].agent.add(cart) == ""
    assert "Address already in use" in nodes[1].agent.add(cart)
    assert all("fwmark:0x539" in line for line in listening(cart))


@pytest.mark.spec("ops-61", "ops-70", "ops-78")
def test_pod_whose_port_is_taken_is_served_once_it_is_free(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    spare = mesh.pod("spare")
    proxy = nodes[1].start()
    nodes[1].agent.meet()
    wait(lambda: proxy.readiness() == "ready", "readiness")
    occupant = mesh.run_app("spare", "--echo", "15008")

    problem = nodes[1].agent.add(spare)

    assert problem.startswith("failed to start proxy : ")
    assert "Address already in use" in problem
    assert proxy.readiness() == "not ready, pending: workload proxy manager"
    info = {"name": "spare-0", "namespace": NAMESPACE, "serviceAccount": "spare"}
    shown = proxy.admin("/config_dump")["workloadState"]
    assert shown == {"spare": {"state": "Pending", "info": info}}
    assert proxy.metric("workload_manager_pending_proxy_count") == 1
    occupant.kill()
    occupant.wait()
    wait(lambda: proxy.readiness() == "ready", "the pod to be served")
    assert len(listening(spare)) == 3
    assert proxy.admin("/config_dump")["workloadState"]["spare"]["state"] == "Up"


@pytest.mark.spec("ops-73", "ops-78", "dataplane-104", "dataplane-114")
def test_pod_that_goes_takes_its_connections_along_and_no_others(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart, web, prices = (mesh.pod(name) for name in ("cart", "web", "prices"))
    proxy = nodes[0].serve(cart, web)
    nodes[1].serve(prices)
    before = proxy.descriptors()
    with (
        mesh.caller("cart").call(prices.ipv4) as ends,
        mesh.caller("web").call(prices.ipv4) as stays,
    ):
        assert ends.greeting() == stays.greeting() == f"prices:{APP_PORT}"
        (shown,) = proxy.admin("/config_dump")["workloadState"]["cart"]["connections"]["outbound"]
        assert (shown["protocol"], shown["originalDst"]) == ("HBONE", at(prices.ipv4, APP_PORT))
        assert shown["src"] == ends.local

        assert nodes[0].agent.delete("cart") == ""

        assert ends.read().ended in ("fin", "reset")
        assert stays.echoed()
    assert listening(cart) == []
    assert list(proxy.admin("/config_dump")["workloadState"]) == ["web"]
    assert proxy.metric("workload_manager_proxies_stopped_total") == 1
    for _ in range(20):
        assert nodes[0].agent.add(cart) == ""
        assert nodes[0].agent.delete("cart") == ""
    assert proxy.descriptors() <= before
    cart.unenrol()


@pytest.mark.spec("ops-69", "ops-70")
def test_agent_that_is_away_is_missed_and_connections_go_on(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart, prices = mesh.pod("cart"), mesh.pod("prices")
    proxy = nodes[0].serve(cart)
    nodes[1].serve(prices)
    with mesh.caller("cart").call(prices.ipv4) as call:
        assert call.greeting() == f"prices:{APP_PORT}"
        nodes[0].agent.order("hang_up")
        wait(lambda: "workload proxy manager" in proxy.readiness(), "the loss to be noticed")
        assert call.echoed()
        nodes[0].agent.order("accept")
        nodes[0].agent.order("keep", uid="cart")
        assert nodes[0].agent.ack() == ""
        nodes[0].agent.order("snapshot")
        assert nodes[0].agent.ack() == ""
        wait(lambda: proxy.readiness() == "ready", "readiness")
        assert call.echoed()


@pytest.mark.spec("ops-63", "ops-64")
def test_agent_that_breaks_the_protocol_ends_the_program(nodes: tuple[Node, Node]) -> None:
    proxy = nodes[0].start()
    nodes[0].agent.meet()

    nodes[0].agent.order("snapshot")

    assert nodes[0].agent.ack() == "protocol error: a second SnapshotSent"
    assert proxy.program.wait(10) == 1
    assert "broke the protocol: a second SnapshotSent" in proxy.journal.path.read_text()


def test_proxy_that_is_told_to_go_lets_connections_finish(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart, prices = mesh.pod("cart"), mesh.pod("prices")
    proxy = nodes[0].serve(cart)
    nodes[1].serve(prices)
    with mesh.caller("cart").call(prices.ipv4) as call:
        assert call.greeting() == f"prices:{APP_PORT}"
        proxy.program.send_signal(signal.SIGTERM)
        assert nodes[0].agent.order("ack") == {"end": True}
        wait(lambda: not listening(cart), "the listeners to go")
        assert call.echoed()
    assert proxy.program.wait(10) == 0


@pytest.mark.spec("ops-59")
def test_agent_is_not_asked_before_the_control_plane_has_spoken(nodes: tuple[Node, Node]) -> None:
    proxy = nodes[0].start(XDS_ADDRESS="https://localhost:9", XDS_ROOT_CA="SYSTEM")

    def failures() -> int:
        lines = (str(event.get("message")) for event in proxy.journal.events())
        return sum("XDS client connection error" in line for line in lines)

    wait(lambda: failures() >= 3, "the control plane to be missed")
    assert nodes[0].agent.order("waiting") == {"waiting": False}
    assert proxy.readiness() == "not ready, pending: proxy, state manager, workload proxy manager"


@pytest.mark.spec("ops-77")
@pytest.mark.parametrize(
    ("missing", "named"),
    [("-sys_admin", "CAP_SYS_ADMIN"), ("-net_admin,-net_raw", "CAP_NET_ADMIN or CAP_NET_RAW")],
)
def test_missing_capabilities_are_named_at_the_start(
    nodes: tuple[Node, Node], missing: str, named: str
) -> None:
    drop = [f"--bounding-set={missing}", f"--inh-caps={missing}"]
    proxy = nodes[0].start("setpriv", *drop)

    assert proxy.program.wait(10) == 1
    assert f"PROXY_MODE=shared needs {named}" in proxy.journal.path.read_text()


@pytest.mark.spec("redir-46")
def test_original_destination_is_asked_for_in_both_families_then_the_own_address_is_taken(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart, prices = mesh.pod("cart"), mesh.pod("prices")
    proxy = nodes[0].serve(cart)
    nodes[1].serve(prices)
    for target in (prices.ipv4, prices.ipv6):
        with mesh.caller("cart").call(target) as call:
            assert call.greeting() == f"prices:{APP_PORT}"
            (shown,) = proxy.admin("/config_dump")["workloadState"]["cart"]["connections"][
                "outbound"
            ]
            assert shown["originalDst"] == at(target, APP_PORT), "unmapped"
    cart.unenrol()
    mark = proxy.mark()
    with mesh.caller("cart").call("127.0.0.1", 15001) as call:
        assert call.read().ended in ("fin", "reset")
    assert mark.line()["dst.addr"] == "127.0.0.1:15001"


@pytest.mark.spec("redir-35")
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_connection_of_a_pod_to_itself_is_not_bound_to_its_source(
    mesh: PodMesh, nodes: tuple[Node, Node], engine: str
) -> None:
    prices = mesh.pod("prices")
    nodes[0].serve(mesh.pod("cart"))
    nodes[1].serve(prices, ZTUNNEL_DATAPLANE=engine)

    def last_leg(client: str) -> str:
        """What the proxy's socket toward the application is, while a connection is open."""
        with mesh.caller(client).call(VIP, 80) as call:
            assert call.greeting() == f"prices:{APP_PORT}"
            assert mesh.apps["prices"].events()[-1]["source"][0] == mesh.pod(client).ipv4
            ends = ["dst", f"{prices.ipv4}:{APP_PORT}"]
            return prices.run(["ss", "-Htne", "--inet-sockopt", *ends]).stdout

    assert "transparent" in last_leg("cart")
    own = last_leg("prices")
    assert prices.ipv4 in own
    assert "transparent" not in own


@pytest.mark.spec("redir-37")
def test_application_that_does_not_answer_is_given_up_after_ten_seconds(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    web = mesh.pod("web")
    mesh.pod("cart").unenrol()  # another test may have left its rules
    proxy = nodes[0].serve(web)
    web.run(["nft", "-f", "-"], text_in=SILENCE)
    try:
        mark = proxy.mark()
        with mesh.caller("cart").call(web.ipv4, 9999) as call:
            assert call.read(wait_s=15).ended in ("fin", "reset")
        line = mark.line()
        assert "deadline has elapsed" in str(line["error"]) or "timed out" in str(line["error"])
        assert 9_900 <= float(str(line["duration"]).removesuffix("ms")) < 12_000
    finally:
        web.run(["nft", "delete", "table", "ip", "silent"])
        web.unenrol()


@pytest.mark.spec("ops-105")
def test_metrics_of_the_proxy_can_be_scraped_through_a_tunnel_under_policies(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart = mesh.pod("cart")
    address = "10.77.2.1"  # of node-b, where the proxy runs
    proxy = {
        **workload(mesh.pod("spare")),
        "uid": "the-proxy",
        "name": "ztunnel-x",
        "namespace": "istio-system",
        "serviceAccount": "ztunnel",
        "workloadIps": [address],
        "authorizationPolicies": ["istio-system/scrapers"],
    }
    scrapers = {
        "name": "scrapers",
        "namespace": "istio-system",
        "scope": "WorkloadSelector",
        "action": "Allow",
        "dryRun": False,
        "rules": [[[{"destinationPorts": [15020]}]]],
    }
    mesh.know([workload(cart), proxy], [], [scrapers])
    nodes[0].serve(cart)
    nodes[1].serve(POD_NAME="ztunnel-x", POD_NAMESPACE="istio-system", SERVICE_ACCOUNT="ztunnel")

    with mesh.caller("cart").call(address, 15020) as call:
        call.send(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
        text = call.read().data.decode()
    with mesh.caller("cart").call(address, 15000) as call:
        call.send(b"GET /config_dump HTTP/1.0\r\nHost: x\r\n\r\n")
        refused = call.read()

    assert "istio_build" in text
    assert 'destination_principal="spiffe://cluster.local/ns/istio-system/sa/ztunnel"' in text
    assert 'connection_security_policy="mutual_tls"' in text
    assert refused.data == b""


def test_admin_port_answers_only_where_the_proxy_is(
    mesh: PodMesh, nodes: tuple[Node, Node]
) -> None:
    cart, node = mesh.pod("cart"), "10.77.1.1"
    proxy = nodes[0].serve(cart)

    def asked(host: str, port: int, path: str) -> str:
        """By a program of the pod."""
        url = f"http://{host}:{port}{path}"
        return cart.run(["curl", "-sg", "--max-time", "3", url], check=False).stdout

    own = proxy.admin("/config_dump")
    captured = [asked(host, 15000, "/config_dump") for host in (node, "127.0.0.1", "[::1]")]
    cart.unenrol()
    past_it = [asked(host, 15000, "/config_dump") for host in (node, "127.0.0.1", "[::1]")]

    assert own["config"]["proxyMode"] == "Shared"
    assert asked(node, 15021, "/healthz/ready") == "ready\n", "the proxy can be reached at all"
    assert captured == past_it == [""] * 3
