# SPDX-License-Identifier: Apache-2.0
"""Dumps as ztunnel writes them, of today and of years ago."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def workload(namespace: str, name: str, ip: str, node: str, **more: Any) -> Json:
    """One workload of a dump."""
    return {
        "uid": f"Kubernetes//Pod/{namespace}/{name}",
        "workloadIps": [ip],
        "protocol": "HBONE",
        "networkMode": "Standard",
        "name": name,
        "namespace": namespace,
        "trustDomain": "cluster.local",
        "serviceAccount": name.partition("-")[0],
        "workloadName": name,
        "workloadType": "deployment",
        "canonicalName": name,
        "canonicalRevision": "latest",
        "node": node,
        "status": "Healthy",
        "clusterId": "Kubernetes",
        "capacity": 1,
        **more,
    }


WORKLOADS = [
    workload("shop", "cart-0", "10.1.0.5", "n1", services=["shop/cart.shop.svc.cluster.local"]),
    workload(
        "shop",
        "prices-0",
        "10.1.1.7",
        "n2",
        status="Unhealthy",
        waypoint={"destination": "shop/wp.shop.svc.cluster.local", "hboneMtlsPort": 15008},
        invented={"by": "a later version"},
    ),
    workload("infra", "wp-0", "10.1.1.9", "n2"),
]
SERVICES: list[Json] = [
    {
        "canonical": True,
        "endpoints": {
            "Kubernetes//Pod/shop/prices-0": {
                "port": {"80": 8080},
                "status": "Unhealthy",
                "workloadUid": "Kubernetes//Pod/shop/prices-0",
            },
            "Kubernetes//Pod/shop/cart-0": {
                "port": {"80": 8080},
                "status": "Healthy",
                "workloadUid": "Kubernetes//Pod/shop/cart-0",
            },
        },
        "hostname": "prices.shop.svc.cluster.local",
        "name": "prices",
        "namespace": "shop",
        "ports": {"80": 8080},
        "subjectAltNames": [],
        "vips": ["/10.96.0.9"],
        "visibility": "Public",
    },
    {
        "endpoints": {},
        "hostname": "wp.shop.svc.cluster.local",
        "name": "wp",
        "namespace": "shop",
        "ports": {"15008": 15008},
        "subjectAltNames": [],
        "vips": ["/10.96.0.10"],
    },
]
POLICIES: list[Json] = [
    {
        "action": "Allow",
        "dryRun": False,
        "name": "callers",
        "namespace": "shop",
        "rules": [[[{"principals": [{"Exact": "cluster.local/ns/infra/sa/wp"}]}]]],
        "scope": "Namespace",
    }
]
CERTIFICATES: list[Json] = [
    {
        "certChain": [
            {
                "expirationTime": "2024-05-02T00:00:00Z",
                "pem": "LS0t",
                "serialNumber": "271676055104",
                "validFrom": "2024-05-01T00:00:00Z",
            }
        ],
        "identity": "spiffe://cluster.local/ns/shop/sa/cart",
        "rootCerts": [],
        "state": "Available",
    },
    {
        "certChain": [],
        "identity": "spiffe://cluster.local/ns/shop/sa/prices",
        "rootCerts": [],
        "state": "Unavailable: signing gRPC error (The caller lacks permission): no",
    },
]
ZTUNNEL: Json = {
    "certificates": CERTIFICATES,
    "config": {"network": "", "localNode": "n1", "adminAddr": {"Localhost": [True, 15000]}},
    "policies": POLICIES,
    "services": SERVICES,
    "stagedServices": {},
    "staticConfig": {"workloads": [], "policies": [], "services": []},
    "version": {"version": "1.28.0", "rustVersion": "1.90.0"},
    "workloadState": {
        "6c1d": {
            "connections": {
                "inbound": [
                    {
                        "actualDst": "10.1.0.5:8080",
                        "originalDst": None,
                        "protocol": "TCP",
                        "src": "10.1.1.7:39000",
                    }
                ],
                "outbound": [
                    {
                        "actualDst": "10.1.1.7:15008",
                        "originalDst": "10.96.0.9:80",
                        "protocol": "HBONE",
                        "src": "10.1.0.5:40112",
                    }
                ],
            },
            "info": {"name": "cart-0", "namespace": "shop", "serviceAccount": "cart"},
            "state": "Up",
        },
        "77aa": {
            "info": {"name": "late-0", "namespace": "shop", "serviceAccount": "late"},
            "state": "Pending",
        },
    },
    "workloads": WORKLOADS,
}
OLD: Json = {
    "workloads": {
        f"/{one['workloadIps'][0]}": one
        | ({"waypoint": {"destination": "/10.96.0.10", "port": 15008}} if "waypoint" in one else {})
        for one in WORKLOADS
    },
    "services": {
        f"/{one['name']}": one
        | {
            "endpoints": {
                f"{uid}:": {"workloadUid": uid, "service": "x", "port": {"80": 8080}}
                for uid in one["endpoints"]
            }
        }
        for one in SERVICES
    },
    "policies": {
        "shop/callers": {key: value for key, value in POLICIES[0].items() if key != "dryRun"}
    },
    "certificates": CERTIFICATES,
}
"""Maps in place of lists, `port` of waypoints, endpoints with the service's name."""
