# SPDX-License-Identifier: Apache-2.0
"""Applications of enrolled pods look up names: their queries are captured on the way."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import pytest

from tests.netns.mesh_state import (
    APP_PORT,
    PodMesh,
    at,
    awaited,
    host,
    key,
    service,
    wait,
    workload,
)
from tests.netns.node import Node
from tests.process.conftest import ROOT
from tests.support import dns_server
from ztunnel_py.cli.demo_mesh import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dns.message import Message

    from ztunnel_py.cli.topology import Pod

PODS = {"cart": "node-a", "web": "node-a", "prices": "node-b", "names": "node-b"}
VIP, VIP6 = "10.96.0.10", "fd00:96::10"
OUTSIDE = "198.51.100.7"
CAPTURE = ("--dns",)


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """A service, and a DNS server for other names in a pod outside of the mesh."""
    folder = tmp_path_factory.mktemp("dns")
    with PodMesh(PODS, folder) as mesh:
        mesh.know(
            [
                workload(
                    mesh.pod(name),
                    services={key("prices"): {80: APP_PORT}} if name == "prices" else {},
                )
                for name in PODS
            ],
            [service("prices", VIP, {80: APP_PORT}, vips=[f"/{VIP}", f"/{VIP6}"])],
        )
        log = folder / "names.log"
        records = [f"outside.example. 60 A {OUTSIDE}", f"{host('prices')}. 60 A 203.0.113.1"]
        argv = [sys.executable, dns_server.__file__, "53", *records]
        with log.open("w") as out:
            program = mesh.pod("names").popen(argv, stdout=out, stderr=out, cwd=ROOT)
        awaited(Journal(log), program, "event", "ready")
        (folder / "resolv.conf").write_text(f"nameserver {mesh.ip('names')}\n")
        mesh.run_app("prices", "--echo", str(APP_PORT))
        yield mesh


@pytest.fixture
def settings(mesh: PodMesh) -> dict[str, str]:
    """What makes a proxy answer."""
    return {
        "ISTIO_META_DNS_CAPTURE": "true",
        "ZTUNNEL_RESOLV_CONF": str(mesh.folder / "resolv.conf"),
        "RUST_LOG": "info,dns=debug",
    }


def look_up(mesh: PodMesh, name: str, kind: str, server: str, by: str) -> Message:
    """What an application in `cart` hears from the server that it thinks it asks."""
    query = dns.message.make_query(name, kind)
    wire, caller = query.to_wire(), mesh.caller("cart")
    if by == "udp":
        answer = caller.ask("datagram", host=server, port=53, data=wire.hex(), wait_s=10.0)
        assert answer.get("source") == [server, 53], answer
        reply = bytes.fromhex(answer["data"])
    else:
        with caller.call(server, 53) as call:
            call.send(len(wire).to_bytes(2, "big") + wire)
            reply = call.read(int.from_bytes(call.read(2).data, "big")).data
    found = dns.message.from_wire(reply)
    assert query.is_response(found)
    return found


def dns_sockets(pod: Pod) -> set[str]:
    """Our DNS sockets in a pod: protocol and address; all of them marked."""
    lines = pod.run(["ss", "-Htulne", "sport", "=", "15053"]).stdout.splitlines()
    assert all("fwmark:0x539" in line for line in lines), lines
    return {f"{line.split()[0]} {line.split()[4]}" for line in lines}


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_application_finds_names_of_the_mesh_and_others(
    mesh: PodMesh, settings: dict[str, str], engine: str
) -> None:
    with Node(mesh, "node-a") as node, Node(mesh, "node-b") as far:
        cart, names = mesh.pod("cart"), mesh.pod("names")
        proxy = node.serve(cart, enrol=CAPTURE, ZTUNNEL_DATAPLANE=engine, **settings)
        far.serve(mesh.pod("prices"))

        for server in (names.ipv4, names.ipv6, "192.0.2.53"):
            for by in ("udp", "tcp"):
                known = look_up(mesh, "prices", "A", server, by)
                assert known.flags & dns.flags.AA
                assert [str(one) for one in known.answer[0]] == [VIP]
                six = look_up(mesh, host("prices"), "AAAA", server, by)
                assert [str(one) for one in six.answer[0]] == [VIP6]
                other = look_up(mesh, "outside.example", "A", server, by)
                assert [str(one) for one in other.answer[0]] == [OUTSIDE]
                missing = look_up(mesh, "nobody.example", "A", server, by)
                assert missing.rcode() == dns.rcode.NXDOMAIN
        with mesh.caller("cart").call(VIP, 80) as call:
            assert call.greeting() == f"prices:{APP_PORT}"

        text = proxy.scrape()
        source = 'source_canonical_service="cart-app",source_canonical_revision="v1"'
        for by in ("udp", "tcp"):
            labels = f'request_query_type="a",request_protocol="{by}",{source}'
            assert f"istio_dns_requests_total{{{labels}}} 9\n" in text
            assert f"istio_dns_upstream_requests_total{{{labels}}} 6\n" in text
            assert f"istio_dns_upstream_failures_total{{{labels}}} 3\n" in text
            duration = "istio_dns_upstream_request_duration_seconds"
            assert f"{duration}_count{{{labels}}} 6\n" in text
            assert f'{duration}_bucket{{{labels},le="+Inf"}} 6\n' in text
        events = [e for e in proxy.journal.events() if e.get("scope") == "dns"]
        assert {"src.workload", "src.namespace", "query", "domain", "result", "endpoints"} <= set(
            events[0]
        )
        assert {e["result"] for e in events} == {
            "success",
            "forwarded",
            "forwarding failed (no records found: NXDOMAIN)",
        }
    cart.unenrol()


def test_no_query_is_lost_while_a_proxy_is_replaced(
    mesh: PodMesh, settings: dict[str, str]
) -> None:
    cart = mesh.pod("cart")
    query = dns.message.make_query("prices", "A").to_wire().hex()
    asking = mesh.caller("cart")
    with (
        Node(mesh, "node-a", mesh.pod("web")) as before,
        Node(mesh, "node-a", mesh.mesh.node("node-b")) as after,
        ThreadPoolExecutor() as threads,
    ):
        old = before.serve(cart, enrol=CAPTURE, **settings)
        asked = threads.submit(
            asking.ask, "queries", host="192.0.2.53", port=53, data=query, seconds=4.0
        )

        after.serve(cart, enrol=CAPTURE, **settings)
        old.program.send_signal(signal.SIGTERM)

        assert old.program.wait(10) == 0
        assert asked.result().get("answered", 0) > 1000, asked.result()
    cart.unenrol()


@pytest.mark.spec("ops-76")
def test_pod_without_ipv6_loopback_has_a_server_on_the_other_one(
    mesh: PodMesh, settings: dict[str, str]
) -> None:
    hosts = ("127.0.0.1", "::1")
    both = {f"{kind} {at(one, 15053)}" for kind in ("tcp", "udp") for one in hosts}
    web, cart = mesh.pod("web"), mesh.pod("cart")
    web.run(["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1"])
    with Node(mesh, "node-a") as node:
        node.start(**settings)
        node.agent.meet()

        assert node.agent.add(web) == ""
        assert node.agent.add(cart) == ""

        assert dns_sockets(web) == {one for one in both if "::1" not in one}
        assert dns_sockets(cart) == both
        assert node.agent.delete("cart") == ""
        assert dns_sockets(cart) == set()
    web.run(["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0"])


def test_pod_whose_dns_port_is_taken_has_no_listener_at_all(
    mesh: PodMesh, settings: dict[str, str]
) -> None:
    cart = mesh.pod("cart")
    with Node(mesh, "node-a") as node:
        occupant = mesh.run_app("cart", "--echo", "15053")
        node.start(**settings)
        node.agent.meet()

        problem = node.agent.add(cart)

        assert problem.startswith("failed to start proxy : ")
        assert "127.0.0.1:15053: Address already in use" in problem
        assert "15001" not in cart.run(["ss", "-Htln"]).stdout
        occupant.kill()
        occupant.wait()


@pytest.mark.parametrize("text", ["", "nameserver\n"])
def test_pod_is_not_served_while_nobody_is_known_to_forward_to(
    mesh: PodMesh, settings: dict[str, str], text: str
) -> None:
    conf = mesh.folder / "empty.conf"
    conf.write_text(text)
    with Node(mesh, "node-a") as node:
        proxy = node.start(**settings | {"ZTUNNEL_RESOLV_CONF": str(conf)})
        node.agent.meet()

        assert str(conf) in node.agent.add(mesh.pod("cart"))

        assert dns_sockets(mesh.pod("cart")) == set()
        conf.write_text("nameserver 127.0.0.1\n")
        wait(lambda: proxy.readiness() == "ready", "the pod to be served")
        assert len(dns_sockets(mesh.pod("cart"))) == 4
