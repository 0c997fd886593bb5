# SPDX-License-Identifier: Apache-2.0
"""Short ways to write what a control plane sends."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as Payload

from ztunnel_py.proto import authorization_pb2, workload_pb2
from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryResponse, Resource
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION

if TYPE_CHECKING:
    from collections.abc import Iterable


def pod(name: str, *ips: str, version: str = "v1", **fields: Any) -> Resource:
    """A pod in `ns` that does HBONE."""
    defaults: dict[str, Any] = {
        "uid": uid(name),
        "name": name,
        "namespace": "ns",
        "addresses": [ipaddress.ip_address(ip).packed for ip in ips],
        "tunnel_protocol": workload_pb2.HBONE,
        "service_account": name,
    }
    workload = workload_pb2.Workload(**{**defaults, **fields})
    message = workload_pb2.Address(workload=workload)
    return resource(ADDRESS, workload.uid, message.SerializeToString(), version)


def uid(name: str) -> str:
    """The uid of the pod `name`."""
    return f"Kubernetes//Pod/ns/{name}"


def service(host: str, *vips: str, version: str = "v1", **fields: Any) -> Resource:
    """A service in `ns` with port 80 to 8080."""
    defaults: dict[str, Any] = {
        "name": host.partition(".")[0],
        "namespace": "ns",
        "hostname": host,
        "addresses": [
            workload_pb2.NetworkAddress(address=ipaddress.ip_address(vip).packed) for vip in vips
        ],
        "ports": [workload_pb2.Port(service_port=80, target_port=8080)],
    }
    made = workload_pb2.Service(**{**defaults, **fields})
    message = workload_pb2.Address(service=made)
    name = f"{made.namespace}/{made.hostname}"
    return resource(ADDRESS, name, message.SerializeToString(), version)


def serving(host: str) -> dict[str, Any]:
    """The field of a pod that is an endpoint of a service."""
    ports = workload_pb2.PortList(ports=[workload_pb2.Port(service_port=80, target_port=8080)])
    return {"services": {f"ns/{host}": ports}}


def policy(name: str, **fields: Any) -> Resource:
    """A policy of `ns` without rules, which denies what it applies to; versions are empty."""
    made = authorization_pb2.Authorization(
        **{
            "name": name,
            "namespace": "ns",
            "scope": authorization_pb2.NAMESPACE,
            "action": authorization_pb2.ALLOW,
            **fields,
        }
    )
    return resource(AUTHORIZATION, f"ns/{name}", made.SerializeToString(), "")


def resource(type_url: str, name: str, payload: bytes, version: str = "v1") -> Resource:
    """A resource of any payload."""
    return Resource(name=name, version=version, resource=Payload(type_url=type_url, value=payload))


def response(
    *resources: Resource,
    type_url: str = ADDRESS,
    nonce: str = "n1",
    removed: Iterable[str] = (),
) -> DeltaDiscoveryResponse:
    """A response."""
    return DeltaDiscoveryResponse(
        system_version_info="2026-01-01T00:00:00Z/1",
        resources=resources,
        type_url=type_url,
        nonce=nonce,
        removed_resources=removed,
    )
