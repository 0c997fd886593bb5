# SPDX-License-Identifier: Apache-2.0
"""Who the proxy says it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.json_format import MessageToDict

from ztunnel_py import config
from ztunnel_py.xds.node import node

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.proto.discovery_pb2 import Node


def node_of(cwd: Path, **environ: str) -> Node:
    """What is said with these variables."""
    return node(config.load(environ, cwd))


@pytest.mark.spec("state-7")
def test_the_id_has_address_pod_and_namespace_and_a_fixed_domain(tmp_path: Path) -> None:
    own = {"POD_NAME": "p", "POD_NAMESPACE": "n", "INSTANCE_IP": "1.2.3.4"}

    found = node_of(tmp_path, CLUSTER_DOMAIN="other.test", **own)

    assert found.id == "ztunnel~1.2.3.4~p.n~n.svc.cluster.local"


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    found = node_of(tmp_path)

    assert found.id == "ztunnel~1.1.1.1~.~.svc.cluster.local"
    assert MessageToDict(found.metadata) == {
        "NAME": "",
        "NAMESPACE": "",
        "INSTANCE_IPS": "1.1.1.1",
        "NODE_NAME": "",
    }


def test_metadata_of_the_environment_wins_over_files_and_over_what_is_known(
    tmp_path: Path,
) -> None:
    found = node_of(
        tmp_path,
        POD_NAME="p",
        NODE_NAME="node-a",
        PROXY_CONFIG="{proxyMetadata: {ISTIO_META_CLUSTER_ID: c0, OTHER: x}}",
        ISTIO_META_CLUSTER_ID="c1",
        ISTIO_META_NAME="renamed",
    )

    said = MessageToDict(found.metadata)
    assert (said["CLUSTER_ID"], said["OTHER"], said["NAME"]) == ("c1", "x", "renamed")
    assert said["NODE_NAME"] == "node-a"


@pytest.mark.spec("state-9")
def test_json_metadata_keep_their_types(tmp_path: Path) -> None:
    found = node_of(
        tmp_path,
        ISTIO_META_LABELS="text",
        ISTIO_METAJSON_LABELS='{"a": 1}',
        ISTIO_METAJSON_ALL='[null, true, 1.5, "x", {"deep": []}]',
        ISTIO_METAJSON_BAD="{",
    )

    assert found.metadata.fields["LABELS"].struct_value.fields["a"].number_value == 1.0
    said = MessageToDict(found.metadata)
    assert said["ALL"] == [None, True, 1.5, "x", {"deep": []}]
    assert "BAD" not in said
