# SPDX-License-Identifier: Apache-2.0
"""A whole mesh served as istiod serves it: what a client makes of it is the mesh itself."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import example
from tests.support.istiod.mesh import Mesh
from tests.support.wait import until
from tests.xds import build
from tests.xds.conftest import Discovery
from ztunnel_py import config
from ztunnel_py.admin.dump_state import dump_state
from ztunnel_py.admin.json_text import to_json
from ztunnel_py.clock import LoopClock
from ztunnel_py.identity.istiod import Istiod as IstiodCa
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.rpc.server import Server
from ztunnel_py.state.store import Store
from ztunnel_py.tasks import Tasks
from ztunnel_py.xds import local
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION

if TYPE_CHECKING:
    from tests.xds.conftest import Plane

ROOT = Path(__file__).parents[2]
EVERYTHING = """
workloads:
  - uid: c//Pod/shop/web-0
    name: web-0
    namespace: shop
    serviceAccount: web
    trustDomain: other.td
    clusterId: c
    workloadName: web-job
    workloadType: cronjob
    canonicalName: web
    canonicalRevision: v2
    workloadIps: [10.0.0.7, "2001:db8::7"]
    hostname: web.example
    network: n
    node: node-a
    protocol: HBONE
    networkMode: HostNetwork
    status: Unhealthy
    nativeTunnel: true
    applicationTunnel: {protocol: PROXY, port: 15088}
    authorizationPolicies: [shop/p]
    locality: {region: eu, zone: eu-1, subzone: a}
    waypoint: {destination: n/10.0.0.9, hboneMtlsPort: 15008}
    networkGateway: {destination: gw/gw.test, hboneMtlsPort: 15009}
    capacity: 0
    services: {shop/web.test: {80: 8080}, shop/later.test: {81: 0}}
  - {uid: c//Pod/shop/b, name: b, namespace: shop, serviceAccount: b, trustDomain: cluster.local,
     clusterId: c, workloadType: pod, workloadIps: [], services: {}}
services:
  - name: web
    namespace: shop
    hostname: web.test
    vips: [n/10.1.0.1, "/2001:db8::1"]
    cidrVips: [{network: n, cidr: 10.2.0.0/16}]
    ports: {80: 8080, 443: 0}
    subjectAltNames: [spiffe://td/ns/shop/sa/web]
    waypoint: {destination: shop/waypoint.test, hboneMtlsPort: 15008}
    weightedWaypoints:
      - {destination: {destination: n/10.0.0.9, hboneMtlsPort: 15008}, weight: 3}
    loadBalancer:
      {routingPreferences: [Network, Region, Zone, Subzone, Node, Cluster], mode: Strict,
       healthPolicy: AllowAll}
    ipFamilies: IPv6
    canonical: true
    visibility: Namespace
  - name: plain
    namespace: shop
    hostname: plain.test
    vips: []
    ports: {}
    loadBalancer: {routingPreferences: [], mode: Standard, healthPolicy: OnlyHealthy}
policies:
  - name: p
    namespace: shop
    scope: WorkloadSelector
    action: Deny
    dryRun: true
    rules:
      - - - namespaces: [!Exact a, !Prefix b, !Suffix c]
            notNamespaces: [!Presence []]
            principals: [!Exact td/ns/a/sa/b]
            notPrincipals: [!Exact x]
            serviceAccounts: [{namespace: a, serviceAccount: b}]
            notServiceAccounts: [{namespace: a, serviceAccount: c}]
            sourceIps: [10.0.0.0/8]
            notSourceIps: ["2001:db8::/32"]
            destinationIps: [10.1.0.0/16]
            notDestinationIps: [10.1.1.0/24]
            destinationPorts: [80]
            notDestinationPorts: [81]
          - destinationPorts: [82]
  - {name: q, namespace: shop, scope: Global, action: Allow, dryRun: false, rules: [[]]}
  - {name: r, namespace: shop, scope: Namespace, action: Allow, dryRun: false, rules: []}
"""


def dump(store: Store) -> dict[str, Any]:
    """The state, without what a file leaves out of it."""
    shown: dict[str, Any] = json.loads(to_json(dump_state(store)))
    for workload in shown["workloads"]:
        workload.pop("services", None)
    return shown


def state_of(text: str) -> Store:
    """What a local state file says."""
    store = Store()
    store.apply(local.parse(text, "test").updates)
    return store


@pytest.mark.parametrize(
    "text", [example.mesh("10.40.1.10", "10.40.2.20"), EVERYTHING], ids=["example", "everything"]
)
async def test_what_is_served_is_what_was_written(text: str, plane: Plane) -> None:
    plane.istiod.serve = Mesh.of_yaml(text).serve

    discovery = plane.discover()
    await discovery.synced()

    assert dump(discovery.store) == dump(state_of(text))


async def test_changes_arrive_and_nothing_else_does(plane: Plane) -> None:
    mesh = Mesh([build.pod("a", "10.0.0.1"), build.policy("p")])
    plane.istiod.serve = mesh.serve
    discovery = plane.discover()
    await discovery.synced()
    assert discovery.counts.messages == {ADDRESS: 1, AUTHORIZATION: 1}

    mesh.change(build.pod("b", "10.0.0.2"), removed=[build.uid("a")])
    await until(lambda: discovery.uids() == {build.uid("b")}, "the change")

    assert discovery.counts.messages == {ADDRESS: 2, AUTHORIZATION: 1}


async def test_after_a_break_only_what_changed_meanwhile_comes(plane: Plane) -> None:
    pods = [build.pod(f"p{i}", f"10.0.0.{i}") for i in range(100)]
    mesh = Mesh([*pods, build.policy("p")])
    plane.istiod.serve = mesh.serve
    discovery = plane.discover()
    await discovery.synced()
    before = dict(discovery.counts.message_bytes)

    await plane.istiod.stop()
    moved, gone = build.pod("p1", "10.0.1.1", version="v2"), build.uid("p2")
    mesh.change(moved, removed=[gone, "ns/p"])
    await plane.istiod.start()
    await until(lambda: not discovery.store.policies(), "the policy is gone")

    await until(lambda: gone not in discovery.uids(), "the workload is gone")
    assert discovery.counts.message_bytes[ADDRESS] == before[ADDRESS] + len(moved.resource.value)
    assert len(discovery.uids()) == 99


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
async def test_a_file_can_be_served_by_a_program_with_certificates(
    mode: str, tmp_path: Path
) -> None:
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text(EVERYTHING)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.istiod", str(mesh), str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert program.stdout is not None
    address = (await program.stdout.readline()).decode().strip()
    roots = str(tmp_path / "root-cert.pem")
    environ = {"XDS_ADDRESS": address, "XDS_ROOT_CA": roots} | {
        "CA_ADDRESS": address,
        "CA_ROOT_CA": roots,
    }
    settings, tasks = config.load(environ, tmp_path), Tasks()
    discovery = Discovery(settings, LoopClock(), tasks)
    authority = IstiodCa(Server.authority(settings), ttl_s=60, impersonates=mode == "shared")
    identity = Identity("td", "shop", "web")

    tasks.spawn(discovery.client.run())
    await discovery.synced()
    certificate = await authority.issue(identity)
    authority.stop()
    await tasks.stop()
    program.kill()
    await program.wait()

    assert dump(discovery.store) == dump(state_of(EVERYTHING))
    assert certificate.identity == identity
