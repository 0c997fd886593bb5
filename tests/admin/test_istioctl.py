# SPDX-License-Identifier: Apache-2.0
"""The dump as istioctl reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.admin.istioctl import misfits
from tests.admin.test_live import connection
from tests.support.authority import Authority, uris
from tests.support.example import mesh
from tests.xds.test_local import FULL
from ztunnel_py.admin.dump import config_dump
from ztunnel_py.admin.dump_pods import dump_pods
from ztunnel_py.admin.json_text import to_json
from ztunnel_py.config import load
from ztunnel_py.dataplane.abc import Direction
from ztunnel_py.identity.manager import CertificateState, CertificateStatus
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.inpod.manager import PodState, PodStatus
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from pathlib import Path

CART, PRICES = (Identity("cluster.local", "shop", name) for name in ("cart", "prices"))
WAYPOINT = """
services:
  - {name: wp, namespace: shop, hostname: wp.test, vips: ["n1/10.0.0.9", "/10.0.0.9"], ports: {}}
"""


@pytest.fixture
def dump(tmp_path: Path) -> dict[str, Any]:
    """Of a proxy that has everything there is."""
    config = load({"XDS_HEADER_KEY": "hush", "CA_HEADER_KEY": "hush", "NODE_NAME": "n"}, tmp_path)
    store = Store()
    for text in (mesh(cart="10.40.1.10", prices="fd00::20"), FULL, WAYPOINT):
        store.apply(local.parse(text, "mesh.yaml").updates)
    issued = Authority().issue(CART, uris(str(CART)))
    certificates = [
        CertificateStatus(CART, CertificateState.AVAILABLE, issued, ""),
        CertificateStatus(PRICES, CertificateState.UNAVAILABLE, None, "signing error: no"),
    ]
    pods = [
        PodStatus("u1", PodState.UP, WorkloadInfo("cart-0", "shop", "cart")),
        PodStatus("u2", PodState.PENDING, WorkloadInfo("cart-1", "shop", "cart")),
    ]
    connections = [
        connection(workload="u1"),
        connection(workload="u1", direction=Direction.INBOUND, original_dst=""),
    ]
    updates = local.parse(FULL, "mesh.yaml").updates
    found = config_dump(config, store, certificates, updates, dump_pods(pods, connections))
    read: dict[str, Any] = json.loads(to_json(found))
    return read


@pytest.mark.spec("ops-114")
def test_istioctl_can_read_all_of_it(dump: dict[str, Any]) -> None:
    assert misfits(dump) == []
    assert all(
        dump[key] for key in ("workloads", "services", "policies", "certificates", "workloadState")
    )


@pytest.mark.spec("ops-114")
def test_its_tables_find_what_they_join(dump: dict[str, Any]) -> None:
    referable = {f"{s['namespace']}/{s['hostname']}" for s in dump["services"]}
    referable |= {vip for s in dump["services"] for vip in s["vips"]}
    healthy = {w["uid"] for w in dump["workloads"] if w["status"] == "Healthy"}
    (prices,) = (s for s in dump["services"] if s["name"] == "prices")

    waypoints = {one["waypoint"]["destination"] for one in dump["workloads"] if "waypoint" in one}
    behind = {endpoint["workloadUid"] for endpoint in prices["endpoints"].values()}

    assert waypoints
    assert waypoints <= referable
    assert behind == {"demo//Pod/shop/prices-0"} <= healthy


@pytest.mark.spec("ops-114")
def test_unavailable_certificates_and_unknown_destinations_are_told(dump: dict[str, Any]) -> None:
    cart, prices = dump["certificates"]
    connections = dump["workloadState"]["u1"]["connections"]

    assert (cart["state"], len(cart["certChain"]), len(cart["rootCerts"])) == ("Available", 1, 1)
    assert (prices["state"], prices["certChain"]) == ("Unavailable: signing error: no", [])
    assert [one["originalDst"] for one in connections["inbound"]] == [None]
    assert [one["originalDst"] for one in connections["outbound"]] == ["10.96.0.1:80"]
    assert "connections" not in dump["workloadState"]["u2"]


def test_values_of_headers_are_in_no_part_of_it(dump: dict[str, Any]) -> None:
    assert dump["config"]["xdsHeaders"] == dump["config"]["caHeaders"] == [["key", "<redacted>"]]
    assert "hush" not in json.dumps(dump)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"workloads": [{"capacity": -1}]}, ".workloads.0.capacity: -1"),
        ({"workloads": "none"}, ": 'none'"),
        ({"services": [{"endpoints": {"u": {"port": {"http": 1}}}}]}, ".endpoints.u.port.http"),
        ({"certificates": [{"certChain": [{"serialNumber": "0xab"}]}]}, "'0xab'"),
    ],
)
def test_the_reader_of_these_tests_refuses_what_istioctl_does(wrong: Any, where: str) -> None:
    (found,) = misfits(wrong)

    assert found.endswith(where)
