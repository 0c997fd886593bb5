# SPDX-License-Identifier: Apache-2.0
"""Waypoints of every kind: an Envoy, or an application behind a proxy of ours (a sandwich).

`app` is what everybody wants to reach. `envoy` and `bare` are Envoys without redirection: one goes
on through HBONE, the other in plaintext. `inner` gets a PROXY header from its proxy, `quiet` none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from bench import envoy
from tests.netns.app import GREETING_SIZE
from tests.netns.mesh_state import (
    APP_PORT,
    BODY,
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
    from ztunnel_py.cli.demo_mesh import Event

PODS = {
    "client": "node-a",
    "app": "node-b",
    "envoy": "node-b",
    "bare": "node-a",
    "inner": "node-b",
    "quiet": "node-a",
}
PROXIED = ("client", "app", "inner", "quiet")
HEADED, QUIET = 15088, 15089
"""Ports of the application tunnels with and without a PROXY header."""
GONE_VIP, DIRECT_VIP = "10.96.1.9", "10.96.2.9"
"""Services whose waypoint is not there, and without a waypoint."""
SIX_VIP = "fd96::6"
"""The only address of a service."""
IDENTITY_TLV = 0xD0


class Way(NamedTuple):
    """A service, and the waypoint that it has."""

    name: str
    vip: str
    waypoint: str
    """A pod."""
    by: str


WAYS = (
    Way("by-address", "10.96.1.1", "envoy", "the waypoint's address"),
    Way("by-service", "10.96.1.2", "bare", "the hostname of a service"),
    Way("by-workload", "10.96.1.3", "quiet", "the hostname of a workload"),
)


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """A service for each way; who calls `app` by its address goes through `inner`."""
    folder = tmp_path_factory.mktemp("waypoints")
    with PodMesh(PODS, folder) as mesh:
        mesh.know(workloads(mesh), services(mesh))
        mesh.serve(*PROXIED)
        mesh.run_app("app", "--echo", str(APP_PORT))
        mesh.run_app("inner", "--waypoint", str(HEADED))
        mesh.run_app("quiet", "--relay", str(QUIET), f"{DIRECT_VIP}:80")
        for name, proved in (("envoy", spiffe("app")), ("bare", "")):
            vip = next(way.vip for way in WAYS if way.waypoint == name)
            onward = envoy.Onward(f"{vip}:80", (mesh.ip("app"), APP_PORT), proved)
            identity = envoy.Identity.under(mesh.identity(name), spiffe("client"))
            place = envoy.Place("0.0.0.0", envoy.HBONE_PORT, mark=None)
            config = envoy.waypoint(identity, [onward], str(folder / f"{name}.log"), place)
            mesh.run_envoy(name, config, envoy.command)
        yield mesh


def workloads(mesh: PodMesh) -> list[Entry]:
    tunnels = {
        "inner": {"protocol": "PROXY", "port": HEADED},
        "quiet": {"protocol": "NONE", "port": QUIET},
    }
    changes: dict[str, Entry] = {
        "app": {
            "waypoint": gateway(f"/{mesh.ip('inner')}"),
            "services": {key(name): {80: APP_PORT} for name in (*(w.name for w in WAYS), "direct")},
        },
        "bare": {"services": {key("bare"): {15008: 15008}}},
        "quiet": {"hostname": host("quiet"), "applicationTunnel": tunnels["quiet"]},
        "inner": {"applicationTunnel": tunnels["inner"]},
    }
    return [workload(mesh.pod(name), **changes.get(name, {})) for name in PODS]


def services(mesh: PodMesh) -> list[Entry]:
    references = {
        "by-address": gateway(f"/{mesh.ip('envoy')}"),
        "by-service": gateway(key("bare")),
        "by-workload": gateway(key("quiet")),
    }
    return [
        *(service(way.name, way.vip, {80: 0}, waypoint=references[way.name]) for way in WAYS),
        service("bare", "10.96.2.1", {15008: 15008}),
        service("six", SIX_VIP, {80: APP_PORT}),
        service("direct", DIRECT_VIP, {80: APP_PORT}),
        service("gone", GONE_VIP, {80: APP_PORT}, waypoint=gateway(key("nowhere"))),
    ]


def line_of_client(mesh: PodMesh, to: tuple[str, int], waypoint: str, service: str = "") -> Event:
    """Talks with `app` through a waypoint; the client's line, checked against its counters."""
    mark = mesh.proxies["client"].mark()
    pods = mesh.pod("client"), mesh.pod(waypoint)

    with mesh.caller("client").call(*to) as call:
        assert call.greeting() == f"app:{APP_PORT}"
        assert call.echoed()
        (shown,) = mesh.proxies["client"].admin("/connections")

    line = mark.line()
    assert "error" not in line
    assert line["dst.addr"] == shown["actualDst"] == f"{mesh.ip(waypoint)}:15008"
    assert line["dst.hbone_addr"] == f"{to[0]}:{to[1]}"
    assert constant(line) == fields(*pods, is_mutual=True, service=service)
    counted, received, sent = mark.counted()
    assert counted == labels("source", *pods, is_mutual=True, service=service)
    assert (received, sent) == (len(BODY), len(BODY) + GREETING_SIZE)
    return line


@pytest.mark.spec("dataplane-26", "state-76")
@pytest.mark.parametrize("way", WAYS, ids=[way.by for way in WAYS])
def test_service_is_reached_through_its_waypoint(mesh: PodMesh, way: Way) -> None:
    at_app = mesh.proxies["app"].mark()

    line_of_client(mesh, (way.vip, 80), way.waypoint, way.name)

    line, is_mutual = at_app.line(), way.waypoint != "bare"
    pods = mesh.pod(way.waypoint), mesh.pod("app")
    assert str(line["src.addr"]).startswith(f"{mesh.ip(way.waypoint)}:")
    assert line["dst.addr"].endswith(":15008" if is_mutual else f":{APP_PORT}")
    found = constant(line)
    found.pop("dst.service", None)
    assert found == fields(*pods, is_mutual=is_mutual)
    counted, received, sent = at_app.counted()
    assert counted["source_workload"] == way.waypoint
    assert counted["source_principal"] == (spiffe(way.waypoint) if is_mutual else "unknown")
    assert (received, sent) == (len(BODY), len(BODY) + GREETING_SIZE)


@pytest.mark.spec("dataplane-32", "dataplane-78", "state-78")
def test_sandwiched_waypoint_is_told_who_called_whom_and_goes_on_directly(mesh: PodMesh) -> None:
    at_app, at_inner = (mesh.proxies[name].mark() for name in ("app", "inner"))
    told = len(mesh.apps["inner"].events())

    line_of_client(mesh, (mesh.ip("app"), APP_PORT), "inner")

    came, said = mesh.apps["inner"].events()[told:]
    assert (came["event"], said["event"]) == ("tcp", "proxy")
    assert came["source"][0] == "127.0.0.1"
    assert said["destination"] == f"{mesh.ip('app')}:{APP_PORT}"
    assert said["tlvs"] == [[IDENTITY_TLV, spiffe("client")]]
    wait(lambda: len(at_inner.proxy.lines()) == at_inner.n_lines + 2, "both legs of the waypoint")
    outbound, inbound = sorted(
        at_inner.proxy.lines()[at_inner.n_lines :], key=lambda line: line["direction"] == "inbound"
    )
    assert said["source"] == inbound["src.addr"]
    assert constant(inbound) == fields(mesh.pod("client"), mesh.pod("inner"), is_mutual=True)
    assert outbound["dst.addr"] == f"{mesh.ip('app')}:15008"
    legs = mesh.pod("inner"), mesh.pod("app")
    assert constant(outbound) == fields(*legs, is_mutual=True)
    line = at_app.line()
    line.pop("dst.service", None)
    assert constant(line) == fields(*legs, is_mutual=True)


@pytest.mark.spec("dataplane-82")
def test_header_names_no_addresses_where_their_families_differ(mesh: PodMesh) -> None:
    told = len(mesh.apps["inner"].events())

    with mesh.hbone("envoy", "inner") as tunnel:
        status = tunnel.request(f"{host('six')}:80")

    wait(lambda: len(mesh.apps["inner"].events()) == told + 2, "the header")
    said = mesh.apps["inner"].events()[-1]
    assert status == "200"
    assert (said["source"], said["destination"]) == (None, None)
    assert said["tlvs"] == [[IDENTITY_TLV, spiffe("envoy")]]


@pytest.mark.spec("dataplane-31", "state-77")
def test_waypoint_of_a_workload_is_for_those_who_call_it_by_its_address(mesh: PodMesh) -> None:
    line_of_client(mesh, (mesh.ip("app"), APP_PORT), "inner")
    mark = mesh.proxies["client"].mark()

    with mesh.caller("client").call(DIRECT_VIP, 80) as call:
        assert call.greeting() == f"app:{APP_PORT}"

    assert mark.line()["dst.addr"] == f"{mesh.ip('app')}:15008"


@pytest.mark.spec("dataplane-80")
def test_sandwiched_waypoint_without_a_protocol_sees_the_bytes_alone(mesh: PodMesh) -> None:
    told = len(mesh.apps["quiet"].events())
    way = next(way for way in WAYS if way.waypoint == "quiet")

    line_of_client(mesh, (way.vip, 80), "quiet", way.name)

    (came,) = mesh.apps["quiet"].events()[told:]
    assert (came["port"], came["source"][0]) == (QUIET, mesh.ip("client"))


@pytest.mark.spec("dataplane-28", "state-80")
def test_waypoint_that_is_unknown_is_never_gone_round(mesh: PodMesh) -> None:
    at_client, at_app = (mesh.proxies[name].mark() for name in ("client", "app"))

    with mesh.caller("client").call(GONE_VIP, 80) as call:
        assert call.read() == (b"", "fin")

    expected = f"unknown waypoint: waypoint {host('nowhere')} not found"
    assert at_client.line()["error"] == expected
    assert at_app.proxy.samples() == at_app.before


def test_waypoints_show_in_the_config_dump(mesh: PodMesh) -> None:
    dump = mesh.proxies["client"].admin("/config_dump")

    found = {one["name"]: one["waypoint"] for one in dump["services"] if one.get("waypoint")}
    assert set(found) == {way.name for way in WAYS} | {"gone"}
