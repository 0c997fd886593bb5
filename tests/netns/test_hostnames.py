# SPDX-License-Identifier: Apache-2.0
"""Endpoints that have a hostname only: DNS is asked from the proxy's own namespace, every time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.netns.mesh_state import (
    APP_PORT,
    PodMesh,
    awaited,
    constant,
    key,
    service,
    spiffe,
    workload,
)
from tests.process.conftest import ROOT
from tests.support import dns_server
from ztunnel_py.cli.demo_mesh import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

PODS = {"client": "node-a", "far": "node-b", "bare": "node-b"}
VIPS = {"bare": "10.96.0.10", "far": "10.96.0.11", "lost": "10.96.0.12"}


@pytest.fixture(scope="module")
def mesh(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodMesh]:
    """Services of one endpoint each: outside the mesh, in it, and one that DNS does not know."""
    folder = tmp_path_factory.mktemp("hostnames")
    with PodMesh(PODS, folder) as mesh:
        client, far = mesh.pod("client"), mesh.pod("far")
        by_name = {
            name: workload(
                mesh.pod("far" if name == "far" else "bare"),
                uid=f"{name}-by-name",
                name=f"{name}-by-name",
                hostname=f"{name}.example",
                workloadIps=[],
                protocol="HBONE" if name == "far" else "TCP",
                services={key(name): {80: APP_PORT}},
            )
            for name in VIPS
        }
        mesh.know(
            [workload(client), workload(far), *by_name.values()],
            [service(name, vip, {80: APP_PORT}) for name, vip in VIPS.items()],
        )
        log = folder / "dns.log"
        records = [f"{name}.example. 60 A {mesh.ip(name)}" for name in ("bare", "far")]
        argv = [sys.executable, dns_server.__file__, "53", *records]
        with log.open("w") as out:
            program = client.popen(argv, stdout=out, stderr=out, cwd=ROOT)
        awaited(Journal(log), program, "event", "ready")
        conf = folder / "resolv.conf"
        conf.write_text("nameserver 127.0.0.1\n")
        mesh.serve("far")
        mesh.serve("client", ZTUNNEL_RESOLV_CONF=str(conf))
        for name in ("far", "bare"):
            mesh.run_app(name, "--echo", str(APP_PORT))
        yield mesh


def lookups(mesh: PodMesh, hostname: str) -> int:
    """How many lookups of `hostname` the client's proxy has counted, all as the client's."""
    text = mesh.caller("client").get(15020, "/metrics")
    found = 0
    for line in text.splitlines():
        if line.startswith("istio_on_demand_dns_total{") and f'hostname="{hostname}"' in line:
            assert f'source_principal="{spiffe("client")}"' in line
            assert 'source_workload="client"' in line
            found += int(line.rpartition(" ")[2])
    return found


@pytest.mark.spec("dataplane-45")
@pytest.mark.parametrize("name", ["bare", "far"])
def test_endpoint_is_found_by_its_name_and_each_connection_counts(mesh: PodMesh, name: str) -> None:
    ip, is_mutual = mesh.ip(name), name == "far"
    for n in (1, 2, 3):
        mark = mesh.proxies["client"].mark()
        with mesh.caller("client").call(VIPS[name], 80) as call:
            assert call.greeting() == f"{name}:{APP_PORT}"
            assert call.echoed()
        line = mark.line()
        assert line["dst.addr"] == f"{ip}:{15008 if is_mutual else APP_PORT}"
        assert line.get("dst.hbone_addr") == (f"{ip}:{APP_PORT}" if is_mutual else None)
        assert constant(line)["dst.workload"] == f"{name}-by-name"
        assert lookups(mesh, f"{name}.example") == n


@pytest.mark.spec("state-73")
def test_name_that_dns_does_not_know_ends_the_connection_and_counts(mesh: PodMesh) -> None:
    mark = mesh.proxies["client"].mark()

    with mesh.caller("client").call(VIPS["lost"], 80) as call:
        assert call.read() == (b"", "fin")

    line = mark.line()
    assert line["message"] == "connection failed"
    assert line["error"] == "no ip addresses were resolved for workload: lost-by-name"
    assert lookups(mesh, "lost.example") == 1
