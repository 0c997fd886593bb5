# SPDX-License-Identifier: Apache-2.0
"""The object of `/config_dump`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ztunnel_py.admin.dump import config_dump, dump_certificates
from ztunnel_py.admin.dump_config import dump_config
from ztunnel_py.config import load
from ztunnel_py.identity.manager import CertificateState, CertificateStatus
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.store import Store
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from pathlib import Path

_LOCAL = """
workloads:
- uid: w1
  workloadIps: [10.1.0.7]
  name: web-1
  namespace: default
  services: {}
"""


def _config(cwd: Path, **environ: str) -> dict[str, Any]:
    return dump_config(load(environ, cwd, cpus=8))


def test_dump_has_the_top_level_keys_of_ztunnel(tmp_path: Path) -> None:
    dump = config_dump(load({}, tmp_path), Store(), [])

    assert set(dump) == {
        "workloads",
        "services",
        "policies",
        "stagedServices",
        "certificates",
        "config",
        "staticConfig",
        "version",
    }


def test_static_config_is_the_local_state_alone(tmp_path: Path) -> None:
    updates = local.parse(_LOCAL, "test").updates

    static = config_dump(load({}, tmp_path), Store(), [], updates)["staticConfig"]

    assert [workload["name"] for workload in static["workloads"]] == ["web-1"]
    assert (list(static["services"]), list(static["policies"])) == ([], [])


def test_version_names_the_istio_version(tmp_path: Path) -> None:
    config = load({"ISTIO_META_ISTIO_VERSION": "1.99"}, tmp_path)

    version = config_dump(config, Store(), [])["version"]

    assert version["istioVersion"] == "1.99"
    assert set(version) == {
        "version",
        "gitRevision",
        "rustVersion",
        "buildProfile",
        "buildStatus",
        "istioVersion",
        "cryptoProvider",
    }


def test_certificates_are_sorted_and_say_why_one_is_unavailable() -> None:
    b, a = Identity("td", "ns", "b"), Identity("td", "ns", "a")

    dump = dump_certificates(
        [
            CertificateStatus(b, CertificateState.INITIALIZING, None, ""),
            CertificateStatus(a, CertificateState.UNAVAILABLE, None, "no authority"),
        ]
    )

    empty: list[object] = []
    assert dump == [
        {
            "identity": "spiffe://td/ns/ns/sa/a",
            "state": "Unavailable: no authority",
            "certChain": empty,
            "rootCerts": empty,
        },
        {
            "identity": "spiffe://td/ns/ns/sa/b",
            "state": "Initializing",
            "certChain": empty,
            "rootCerts": empty,
        },
    ]


def test_config_uses_the_encodings_of_ztunnel(tmp_path: Path) -> None:
    dump = _config(
        tmp_path,
        PROXY_MODE="dedicated",
        PROXY_WORKLOAD_INFO="shop/cart-1/cart",
        POOL_UNUSED_RELEASE_TIMEOUT="1500ms",
        IPV6_ENABLED="false",
        XDS_ROOT_CA="SYSTEM",
    )

    expected = {
        "poolUnusedReleaseTimeout": {"secs": 1, "nanos": 500_000_000},
        "adminAddr": {"Localhost": [False, 15000]},
        "statsAddr": {"SocketAddr": "0.0.0.0:15020"},
        "inboundAddr": "0.0.0.0:15008",
        "proxyMode": "Dedicated",
        "proxyWorkloadInformation": {
            "namespace": "shop",
            "name": "cart-1",
            "serviceAccount": "cart",
        },
        "xdsRootCert": "Default",
        "caRootCert": "Static",
        "packetMark": None,
        "numWorkerThreads": 2,
    }
    assert {key: dump[key] for key in expected} == expected


def test_config_shows_the_names_of_headers_but_not_their_values(tmp_path: Path) -> None:
    dump = _config(tmp_path, XDS_HEADER_A="hush", AUTH_TOKEN="hush")

    assert dump["xdsHeaders"] == [["a", "<redacted>"]]
    assert "hush" not in repr(dump)


def test_own_identity_is_shown_when_the_pod_is_known(tmp_path: Path) -> None:
    dump = _config(tmp_path, POD_NAME="p", POD_NAMESPACE="ns", SERVICE_ACCOUNT="sa")

    assert dump["ztunnelIdentity"] == "spiffe://cluster.local/ns/ns/sa/sa"
    assert _config(tmp_path, POD_NAME="p")["ztunnelIdentity"] is None
