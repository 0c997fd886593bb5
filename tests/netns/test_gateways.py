# SPDX-License-Identifier: Apache-2.0
"""Double HBONE: from one network to another through an Envoy that sees the outer tunnel only.

`client` is on the network without a name; the gateway, `app` and its waypoint `warden` are on the
network `far`. All that the gateway goes by is the authority of the outer tunnel.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from bench import envoy
from tests.netns.app import GREETING_SIZE
from tests.netns.mesh_state import (
    APP_PORT,
    BODY,
    DEADLINE_S,
    NAMESPACE,
    PodMesh,
    constant,
    fields,
    gateway,
    host,
    key,
    labels,
    service,
    spiffe,
    wait,
    workload,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.mesh_state import Entry

PODS = {"client": "node-a", "gateway": "node-b", "app": "node-b", "warden": "node-b"}
FAR = "far"
SETTINGS = {"client": {}, "app": {"NETWORK": FAR}, "warden": {"NETWORK": FAR}}
BY_ADDRESS, BY_HOSTNAME, NAMELESS = "10.96.3.1", "10.96.3.2", "10.96.3.3"
"""Services whose endpoint is behind the gateway's address, behind its hostname, and one that says
nothing of who serves it."""
NAMES = ("by-address", "by-hostname", "nameless")
ODD_PORT = 15018
"""Of the gateway's service; its pods listen on 15008."""
GUARDED, TUNNEL_PORT = "10.96.3.4", 15089
"""A service whose waypoint is on the other network, and where that takes streams."""


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """Two networks on two nodes."""
    folder = tmp_path_factory.mktemp("gateways")
    with PodMesh(PODS, folder) as mesh:
        mesh.know(workloads(mesh), services())
        for name, settings in SETTINGS.items():
            mesh.serve(name, **settings)
        mesh.run_app("app", "--echo", str(APP_PORT))
        mesh.run_app("warden", "--relay", str(TUNNEL_PORT), f"{mesh.ip('app')}:{APP_PORT}")
        identity = envoy.Identity.under(mesh.identity("gateway"), spiffe("client"))
        behind = (mesh.ip("app"), envoy.HBONE_PORT)
        onward = [envoy.Onward(f"{host(name)}:80", behind) for name in NAMES]
        warden = (mesh.ip("warden"), envoy.HBONE_PORT)
        onward.append(envoy.Onward(f"{host('guarded')}:80", warden))
        place = envoy.Place("0.0.0.0", envoy.HBONE_PORT, mark=None)
        config = envoy.waypoint(identity, onward, str(folder / "access.log"), place)
        mesh.run_envoy("gateway", config, envoy.command)
        yield mesh


def workloads(mesh: PodMesh) -> list[Entry]:
    """`split` stands for all endpoints of a remote service, as a control plane sums them up."""
    split: Entry = {
        **workload(mesh.pod("app")),
        "uid": f"{FAR}/SplitHorizonWorkload/gateway/{key('by-hostname')}",
        "name": "split",
        "workloadIps": [],
        "network": FAR,
        "services": {key("by-hostname"): {80: 0}},
        "networkGateway": gateway(key("gateway"), ODD_PORT),
    }
    return [
        workload(mesh.pod("client")),
        workload(mesh.pod("gateway"), network=FAR, services={key("gateway"): {ODD_PORT: 15008}}),
        workload(
            mesh.pod("app"),
            network=FAR,
            networkGateway=gateway(f"{FAR}/{mesh.ip('gateway')}"),
            services={key(name): {80: APP_PORT} for name in ("by-address", "nameless")},
        ),
        split,
        workload(
            mesh.pod("warden"),
            network=FAR,
            networkGateway=gateway(f"{FAR}/{mesh.ip('gateway')}"),
            applicationTunnel={"protocol": "NONE", "port": TUNNEL_PORT},
            services={key("warden"): {15008: 15008}},
        ),
    ]


def services() -> list[Entry]:
    names = [spiffe("app")]
    return [
        service("by-address", BY_ADDRESS, {80: APP_PORT}, subjectAltNames=names),
        service("by-hostname", BY_HOSTNAME, {80: APP_PORT}, subjectAltNames=names),
        service("nameless", NAMELESS, {80: APP_PORT}),
        service("gateway", "10.96.3.9", {ODD_PORT: 15008}),
        service("guarded", GUARDED, {80: APP_PORT}, waypoint=gateway(key("warden"))),
        service("warden", "10.96.3.8", {15008: 0}, subjectAltNames=[spiffe("warden")]),
    ]


@pytest.mark.spec("dataplane-40", "dataplane-43", "state-82")
@pytest.mark.parametrize(
    ("vip", "name"),
    [(BY_ADDRESS, "by-address"), (BY_HOSTNAME, "by-hostname")],
    ids=["gateway by address", "gateway by hostname and another port"],
)
def test_services_of_another_network_are_reached_through_its_gateway(
    mesh: PodMesh, vip: str, name: str
) -> None:
    at_client, at_app = (mesh.proxies[pod].mark() for pod in ("client", "app"))
    authority = f"{host(name)}:80"

    with mesh.caller("client").call(vip, 80) as call:
        assert call.greeting() == f"app:{APP_PORT}"
        assert call.echoed()
        (shown,) = mesh.proxies["client"].admin("/connections")

    line = at_client.line()
    assert "error" not in line
    assert (line["src.addr"], line["dst.addr"]) == (call.local, f"{mesh.ip('gateway')}:15008")
    assert (shown["protocol"], shown["actualDst"]) == ("DOUBLEHBONE", line["dst.addr"])
    assert (line["dst.hbone_addr"], line["dst.service"]) == (authority, host(name))
    counted, received, sent = at_client.counted()
    pods = mesh.pod("client"), mesh.pod("app")
    expected = labels("source", *pods, is_mutual=True, service=name)
    # the app of a destination that tells of itself is its workload
    assert counted == expected | {"destination_app": "app"}
    assert constant(line) == fields(*pods, is_mutual=True, service=name) | {"dst.workload": "app"}
    assert (received, sent) == (len(BODY), len(BODY) + GREETING_SIZE)
    at_server = at_app.line()
    assert at_server["src.addr"].startswith(f"{mesh.ip('gateway')}:")
    assert at_server["dst.hbone_addr"] == authority
    assert at_server["dst.service"] == host(name)
    assert at_app.counted()[1:] == (received, sent)


@pytest.mark.spec("state-83")
def test_waypoint_of_another_network_is_reached_through_its_gateway(mesh: PodMesh) -> None:
    at_client, at_warden, at_app = (mesh.proxies[n].mark() for n in ("client", "warden", "app"))

    with mesh.caller("client").call(GUARDED, 80) as call:
        assert call.greeting() == f"app:{APP_PORT}"
        assert call.echoed()

    line = at_client.line()
    assert line["dst.addr"] == f"{mesh.ip('gateway')}:15008"
    assert line["dst.hbone_addr"] == f"{host('guarded')}:80"
    wait(lambda: len(at_warden.proxy.lines()) == at_warden.n_lines + 2, "both legs of the waypoint")
    legs = at_warden.proxy.lines()[at_warden.n_lines :]
    inbound, outbound = sorted(legs, key=lambda leg: str(leg["direction"]))
    assert inbound["src.identity"] == spiffe("client")
    assert inbound["dst.hbone_addr"] == f"{host('guarded')}:80"
    assert outbound["dst.addr"] == f"{mesh.ip('app')}:15008"
    assert at_app.line()["src.identity"] == spiffe("warden")


def test_client_behind_a_gateway_is_known_by_its_own_word_and_certificate(mesh: PodMesh) -> None:
    at_app = mesh.proxies["app"].mark()
    pods = mesh.pod("client"), mesh.pod("app")

    with mesh.caller("client").call(BY_ADDRESS, 80) as call:
        assert call.greeting() == f"app:{APP_PORT}"

    line = at_app.line()
    assert line["src.identity"] == spiffe("client")
    assert (line["src.workload"], line["src.namespace"]) == ("client-app", NAMESPACE)
    expected = labels("destination", *pods, is_mutual=True, service="by-address")
    # the app of a source that tells of itself is its workload
    assert at_app.counted()[0] == expected | {"source_app": "client"}


@pytest.mark.spec("dataplane-84")
@pytest.mark.parametrize(
    ("network", "workload_name"), [("elsewhere", "liar"), (FAR, "gateway"), ("FAR", "gateway")]
)
def test_word_of_a_client_counts_only_if_it_comes_from_another_network(
    mesh: PodMesh, network: str, workload_name: str
) -> None:
    mark = mesh.proxies["app"].mark()
    said = ("baggage", "k8s.namespace.name=elsewhere,k8s.deployment.name=liar")

    with mesh.hbone("gateway", "app") as tunnel:
        status = tunnel.request(
            f"{mesh.ip('app')}:{APP_PORT}", said, ("x-forwarded-network", network)
        )

    assert status == "200"
    counted, _, _ = mark.counted()
    assert counted["source_workload"] == workload_name
    assert counted["source_principal"] == spiffe("gateway")


@pytest.mark.spec("dataplane-42")
def test_outer_tunnel_is_shared_and_inner_ones_are_not(mesh: PodMesh) -> None:
    mesh.proxies["client"].mark()
    mesh.proxies["app"].mark()

    with (
        mesh.caller("client").call(BY_ADDRESS, 80) as first,
        mesh.caller("client").call(BY_ADDRESS, 80) as second,
    ):
        assert first.greeting() == second.greeting() == f"app:{APP_PORT}"
        inner, outer = streams(mesh, "app", "client"), streams(mesh, "client", "gateway")

    assert (inner, outer) == ([1, 1], [2])
    wait(lambda: streams(mesh, "app", "client") == [], "the inner tunnels to go")


def streams(mesh: PodMesh, pod: str, identity: str) -> list[int]:
    """How many streams each tunnel of a pod's proxy with an identity has."""
    tunnels = mesh.proxies[pod].admin("/tunnels")
    return [one["streams"] for one in tunnels if one["identity"] == spiffe(identity)]


@pytest.mark.spec("dataplane-44")
def test_nobody_is_believed_behind_a_gateway_unless_the_service_names_them(mesh: PodMesh) -> None:
    at_client, at_app = (mesh.proxies[pod].mark() for pod in ("client", "app"))

    with mesh.caller("client").call(NAMELESS, 80) as call:
        assert call.read() == (b"", "fin")

    assert "identity verification error" in at_client.line()["error"]
    ((failed, count),) = at_client.growth("connections_failed")
    assert (failed["response_flags"], count) == ("CONNECT", 1)
    assert at_app.growth("connections_opened") == []


@pytest.mark.parametrize(("side", "port"), [("client", 15001), ("app", 15008)])
def test_proxy_that_is_told_to_go_finishes_what_runs_through_the_gateway(
    mesh: PodMesh, side: str, port: int
) -> None:
    proxy = mesh.proxies[side]

    with mesh.caller("client").call(BY_ADDRESS, 80) as call:
        assert call.greeting() == f"app:{APP_PORT}"
        proxy.program.send_signal(signal.SIGTERM)
        wait(lambda: mesh.caller(side).is_refused("127.0.0.1", port), "the port to close")
        is_whole = call.echoed()
    status = proxy.program.wait(DEADLINE_S)
    line = [one for one in proxy.lines() if one["message"] == "connection complete"][-1]
    mesh.serve(side, **SETTINGS[side])

    assert (is_whole, status) == (True, 0)
    assert "error" not in line
