# SPDX-License-Identifier: Apache-2.0
"""Who this proxy is to the control plane: node id and metadata.

Source: spec state, section 1.3; ztunnel src/xds/client.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.json_format import ParseDict

from ztunnel_py.proto.discovery_pb2 import Node

if TYPE_CHECKING:
    from ztunnel_py.config_model import Config


def node(config: Config) -> Node:
    """The node of the first requests of every stream.

    Metadata are texts, but for what `ISTIO_METAJSON_*` gives as JSON; what comes later in the list
    below wins. The domain in the id is fixed, whatever the cluster's is.
    """
    ip, pod, namespace = config.instance_ip, config.pod_name or "", config.pod_namespace or ""
    made = Node(id=f"ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local")
    own = {
        "NAME": pod,
        "NAMESPACE": namespace,
        "INSTANCE_IPS": ip,
        "NODE_NAME": config.node_name or "",
    }
    ParseDict({**own, **config.metadata, **config.metadata_json}, made.metadata)
    return made
