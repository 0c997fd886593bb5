# SPDX-License-Identifier: Apache-2.0
"""The local state file: what it accepts, refuses and means."""

from __future__ import annotations

import copy
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.state.build import at
from ztunnel_py.admin.dump_state import dump_state
from ztunnel_py.admin.json_text import to_json
from ztunnel_py.errors import LocalStateError
from ztunnel_py.state.policy import StringMatch, StringMatchKind
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import (
    GatewayAddress,
    NamespacedHostname,
    Protocol,
)
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from pathlib import Path

FULL = """
workloads:
  - uid: demo//Pod/shop/a
    name: a
    namespace: shop
    serviceAccount: sa
    trustDomain: cluster.local
    clusterId: demo
    workloadName: a-deploy
    workloadType: deployment
    canonicalName: a
    canonicalRevision: v1
    workloadIps: ["10.0.0.1", "2001:db8::1"]
    network: n1
    node: node-a
    hostname: a.test
    protocol: HBONE
    networkMode: Standard
    status: Unhealthy
    nativeTunnel: true
    applicationTunnel: {protocol: PROXY, port: 15088}
    authorizationPolicies: ["shop/p"]
    locality: {region: eu, zone: eu-1, subzone: a}
    waypoint: {destination: /10.0.0.9, hboneMtlsPort: 15008}
    networkGateway: {destination: ns/gw.example, hboneMtlsPort: 15009}
    capacity: 3
    services:
      shop/web.test: {80: 8080}
services:
  - name: web
    namespace: shop
    hostname: web.test
    vips: ["n1/10.1.0.1"]
    cidrVips: [{network: n1, cidr: 10.2.0.0/16}]
    ports: {80: 8080}
    endpoints: {other: {workloadUid: other, port: {80: 9090}, status: Healthy}}
    subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/web", "dns.name"]
    waypoint: {destination: shop/wp.test, hboneMtlsPort: 15008}
    weightedWaypoints:
      - destination: {destination: n1/10.0.0.8, hboneMtlsPort: 15008}
        weight: 100
    loadBalancer: {routingPreferences: [Network, Zone], mode: Failover, healthPolicy: AllowAll}
    ipFamilies: Dual
    canonical: true
    visibility: Namespace
policies:
  - name: p
    namespace: shop
    scope: WorkloadSelector
    action: Deny
    dryRun: true
    rules:
      - - - namespaces: [!Exact a]
            notNamespaces: [!Prefix b]
            principals: [!Suffix c]
            notPrincipals: [!Presence []]
            serviceAccounts: [{namespace: a, serviceAccount: b}]
            notServiceAccounts: [{namespace: c, serviceAccount: d}]
            sourceIps: [10.0.0.0/8]
            notSourceIps: [10.0.0.1/32]
            destinationIps: ["::/0"]
            notDestinationIps: [10.0.1.77/24]
            destinationPorts: [80]
            notDestinationPorts: [81]
"""

WORKLOAD = "workloads: [{uid: u, namespace: ns, workloadIps: [10.0.0.1], services: {}%s}]"
SERVICE = "services: [{name: n, namespace: ns, hostname: h.test, vips: [], ports: {}%s}]"
POLICY = (
    "policies: [{name: p, namespace: ns, scope: Global, action: Allow, dryRun: false, rules: [%s]}]"
)


def parsed(text: str) -> Store:
    store = Store()
    store.apply(local.parse(text, "mesh.yaml").updates)
    return store


def shown(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(to_json(dump_state(store)))
    return found


def test_every_key_is_read_and_dumped_under_the_same_name() -> None:
    dump = shown(parsed(FULL))

    again = copy.deepcopy(dump)
    del again["stagedServices"]
    again["workloads"][0]["services"] = {"shop/web.test": {"80": 8080}}
    assert shown(parsed(json.dumps(again))) == dump
    assert set(again["workloads"][0]) == local.WORKLOAD_KEYS
    assert set(again["services"][0]) == local.SERVICE_KEYS
    assert set(again["policies"][0]) == local.POLICY_KEYS
    assert set(again["policies"][0]["rules"][0][0][0]) == local._MATCH


def test_defaults_are_those_of_the_file_not_of_xds() -> None:
    workload = parsed(WORKLOAD % "").workload("u")

    assert workload is not None
    assert (workload.cluster_id, workload.capacity, workload.protocol) == ("", 1, Protocol.TCP)


@pytest.mark.spec("state-119")
def test_identity_without_trust_domain_has_an_empty_one() -> None:
    workload = parsed(WORKLOAD % ", serviceAccount: sa").workload("u")

    assert workload is not None
    assert str(workload.identity) == "spiffe:///ns/ns/sa/sa"


@pytest.mark.spec("state-118")
@pytest.mark.parametrize(
    ("written", "destination"),
    [
        ("/10.0.0.1", at("10.0.0.1")),
        ("ns/gw.example", NamespacedHostname("ns", "gw.example")),
    ],
)
def test_gateway_is_an_address_if_an_ip_is_behind_the_slash(
    written: str, destination: object
) -> None:
    text = WORKLOAD % f", waypoint: {{destination: {written}, hboneMtlsPort: 15008}}"

    workload = parsed(text).workload("u")

    assert workload is not None
    assert workload.waypoint is not None
    assert workload.waypoint.destination == destination
    assert isinstance(workload.waypoint, GatewayAddress)


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ("!Exact a/b", StringMatch(StringMatchKind.EXACT, "a/b")),
        ("{Exact: a/b}", StringMatch(StringMatchKind.EXACT, "a/b")),
        ("!Presence []", StringMatch(StringMatchKind.PRESENCE)),
        ("{Presence: []}", StringMatch(StringMatchKind.PRESENCE)),
    ],
)
def test_string_matches_are_tags_or_maps(written: str, match: StringMatch) -> None:
    found = parsed(POLICY % f"[[{{principals: [{written}]}}]]").policy("ns/p")

    assert found is not None
    assert found.rules[0][0][0].principals == (match,)


@pytest.mark.spec("state-115")
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("workload: []", "mesh.yaml: unknown key 'workload'"),
        (WORKLOAD % ", foo: 1", r"mesh.yaml: workloads\[0\] \(uid u\): unknown key 'foo'"),
        (
            WORKLOAD % ", locality: {region: a, zone: b, subzone: c, rack: d}",
            r"workloads\[0\] \(uid u\): locality: unknown key 'rack'",
        ),
        (SERVICE % ", foo: 1", r"services\[0\] \(ns/h.test\): unknown key 'foo'"),
        (
            POLICY % "[[{foo: []}]]",
            r"policies\[0\] \(ns/p\): rules\[0\]\[0\]\[0\]: unknown key 'foo'",
        ),
        (
            POLICY % "[[{serviceAccounts: [{name: x}]}]]",
            r"rules\[0\]\[0\]\[0\].serviceAccounts\[0\]: unknown key 'name'",
        ),
    ],
)
def test_unknown_key_anywhere_is_an_error_that_names_it(text: str, error: str) -> None:
    with pytest.raises(LocalStateError, match=error):
        local.parse(text, "mesh.yaml")


@pytest.mark.spec("state-116")
def test_services_of_a_workload_may_be_empty_but_not_missing() -> None:
    without = "workloads: [{uid: u, namespace: ns, workloadIps: []}]"

    assert parsed(WORKLOAD % "").workload("u") is not None
    with pytest.raises(LocalStateError, match=r"\(uid u\): missing key 'services'"):
        local.parse(without, "mesh.yaml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[]", "mesh.yaml: expected a mapping, got a list"),
        ("workloads: {}", "mesh.yaml: workloads: expected a list, got a mapping"),
        ("workloads: [x]", r"workloads\[0\]: expected a mapping, got 'x'"),
        ("a: 1\na: 2", "mesh.yaml: line 2: duplicate key 'a'"),
        (WORKLOAD % ", name: 5", r"\(uid u\): name: expected a string, got 5"),
        (WORKLOAD % ", name: ", "name: expected a string, got nothing"),
        (WORKLOAD % ", protocol: QUIC", "protocol: 'QUIC' is none of TCP, HBONE"),
        (WORKLOAD % ", nativeTunnel: yes", "nativeTunnel: expected true or false, got 'yes'"),
        (WORKLOAD % ", capacity: -1", "capacity: expected a whole number from 0 to 4294967295"),
        (WORKLOAD % ", capacity: 1.5", "capacity: expected a whole number"),
        (WORKLOAD % ", locality: {region: a}", "locality: missing key 'zone'"),
        (
            WORKLOAD % ", waypoint: {destination: wp, hboneMtlsPort: 15008}",
            "waypoint.destination: 'wp' is neither network/ip nor namespace/hostname",
        ),
        (
            WORKLOAD % ", waypoint: {destination: /10.0.0.1, hboneMtlsPort: 70000}",
            "waypoint.hboneMtlsPort: expected a whole number from 0 to 65535, got 70000",
        ),
        (
            "workloads: [{namespace: n, workloadIps: [10.0.0.256], services: {}}]",
            r"workloads\[0\]: workloadIps\[0\]: '10.0.0.256' does not appear",
        ),
        (
            "workloads: [{namespace: n, workloadIps: [], services: {web: {}}}]",
            r"services\[web\]: 'web' is not namespace/hostname",
        ),
        (
            "workloads: [{namespace: n, workloadIps: [], services: {a/b: {80: x}}}]",
            r"services\[a/b\]\[80\]: expected a whole number",
        ),
        (SERVICE % ", canonical: 1", "canonical: expected true or false, got 1"),
        (SERVICE % ", cidrVips: [{network: '', cidr: 10.0.0.0/33}]", r"cidrVips\[0\].cidr: "),
        (SERVICE % ", ipFamilies: IPv5", "ipFamilies: 'IPv5' is none of Dual, IPv4, IPv6"),
        (
            "services: [{name: n, namespace: ns, hostname: h, vips: [10.0.0.1], ports: {}}]",
            r"vips\[0\]: '10.0.0.1' is not network/ip",
        ),
        (POLICY % "[[{principals: [a]}]]", r"principals\[0\]: expected one of !Exact"),
        (POLICY % "[[{principals: [!Glob a]}]]", r"principals\[0\]: 'Glob' is none of Exact"),
        (POLICY % "[[{principals: [!Exact [a]]}]]", r"principals\[0\]: expected a string"),
        (POLICY % "[[{principals: [!Presence x]}]]", "Presence takes no value"),
        (POLICY % "[[{sourceIps: [10.0.0.1]}]]", r"sourceIps\[0\]: '10.0.0.1' is not an address"),
        (POLICY % "[[{destinationPorts: [65536]}]]", r"destinationPorts\[0\]: expected a whole"),
        (POLICY % "[{}]", r"rules\[0\]\[0\]: expected a list, got a mapping"),
    ],
)
def test_bad_input_is_an_error_that_says_where(text: str, error: str) -> None:
    with pytest.raises(LocalStateError, match=error):
        local.parse(text, "mesh.yaml")


@pytest.mark.spec("state-117")
def test_file_and_text_together_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocalStateError, match="LOCAL_XDS_PATH and LOCAL_XDS are both set"):
        local.load(str(tmp_path / "mesh.yaml"), "workloads: []")


def test_state_is_read_from_the_file_or_the_text_or_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(WORKLOAD % "")

    states = [local.load(str(path)), local.load(text=WORKLOAD % ""), local.load()]

    assert [len(state.workloads) for state in states] == [1, 1, 0]
    with pytest.raises(LocalStateError, match="cannot read"):
        local.load(str(tmp_path / "absent.yaml"))


def test_ten_thousand_workloads_load_in_seconds() -> None:
    line = (
        "  - {uid: u%d, name: w%d, namespace: ns, serviceAccount: sa, trustDomain: cluster.local,"
        " workloadIps: [10.0.%d.%d], node: n, protocol: HBONE, services: {ns/web.test: {80: 8080}}}"
    )
    entries = (line % (i, i, i >> 8, i & 255) for i in range(10_000))
    text = "workloads:\n" + "\n".join(entries)

    started = time.process_time()
    store = parsed(text)

    assert time.process_time() - started < 5
    assert store.workload_at(at("10.0.39.15")) is not None
