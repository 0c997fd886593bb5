# SPDX-License-Identifier: Apache-2.0
"""What `istioctl ztunnel-config` can read: the shape that its Go types give a dump.

A value of another type than here aborts the whole command; null and a missing key are always
taken, unknown keys are passed over. Source: istio istioctl/pkg/writer/ztunnel/configdump.
"""

from __future__ import annotations

import re
from typing import Any


class Number:
    """An unsigned integer of so many bits."""

    def __init__(self, bits: int) -> None:
        self.most = 2**bits - 1


class Map:
    """An object whose keys match a pattern, and whose values have a shape."""

    def __init__(self, values: Any, keys: str = ".*") -> None:
        self.values, self.keys = values, keys


class Matching:
    """A text that is parsed further."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern


ANY, TEXT, FLAG, PORT = object(), object(), object(), Number(16)
_GATEWAY = {"destination": TEXT}
_TIME = Matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_CERTIFICATE = {
    "pem": TEXT,
    "serialNumber": Matching(r"\d+"),
    "validFrom": _TIME,
    "expirationTime": _TIME,
}
_STRING = {"Exact": TEXT, "Suffix": TEXT, "Prefix": TEXT, "Presence": ANY}
_ACCOUNT = {"namespace": TEXT, "serviceAccount": TEXT}
_MATCH = {
    "namespaces": [_STRING],
    "notNamespaces": [_STRING],
    "principals": [_STRING],
    "notPrincipals": [_STRING],
    "sourceIps": [TEXT],
    "notSourceIps": [TEXT],
    "destinationIps": [TEXT],
    "notDestinationIps": [TEXT],
    "destinationPorts": [PORT],
    "notDestinationPorts": [PORT],
    "serviceAccounts": [_ACCOUNT],
    "notServiceAccounts": [_ACCOUNT],
}
_CONNECTION = {"src": TEXT, "originalDst": TEXT, "actualDst": TEXT, "protocol": TEXT}
_WORKLOAD = {
    "uid": TEXT,
    "workloadIps": [TEXT],
    "waypoint": _GATEWAY,
    "networkGateway": _GATEWAY,
    "protocol": TEXT,
    "name": TEXT,
    "namespace": TEXT,
    "serviceAccount": TEXT,
    "workloadName": TEXT,
    "workloadType": TEXT,
    "canonicalName": TEXT,
    "canonicalRevision": TEXT,
    "clusterId": TEXT,
    "trustDomain": TEXT,
    "locality": {"region": TEXT, "zone": TEXT, "subzone": TEXT},
    "node": TEXT,
    "network": TEXT,
    "status": TEXT,
    "hostname": TEXT,
    "capacity": Number(32),
    "applicationTunnel": {"protocol": TEXT, "port": PORT},
    "authorizationPolicies": [TEXT],
}
_SERVICE = {
    "name": TEXT,
    "namespace": TEXT,
    "hostname": TEXT,
    "vips": [TEXT],
    "cidrVips": [{"cidr": TEXT, "network": TEXT}],
    "ports": Map(Number(63)),
    "loadBalancer": {"mode": TEXT, "routingPreferences": [TEXT], "healthPolicy": TEXT},
    "waypoint": _GATEWAY,
    "endpoints": Map(
        {"workloadUid": TEXT, "service": TEXT, "address": TEXT, "port": Map(PORT, r"\d{1,5}")}
    ),
    "subjectAltNames": [TEXT],
    "ipFamilies": TEXT,
    "canonical": FLAG,
    "visibility": TEXT,
}
DUMP = {
    "workloads": [_WORKLOAD],
    "services": [_SERVICE],
    "policies": [
        {
            "name": TEXT,
            "namespace": TEXT,
            "scope": TEXT,
            "action": TEXT,
            "rules": [[[_MATCH]]],
        }
    ],
    "certificates": [
        {
            "identity": TEXT,
            "state": TEXT,
            "certChain": [_CERTIFICATE],
            "rootCerts": [_CERTIFICATE],
        }
    ],
    "workloadState": Map(
        {
            "state": TEXT,
            "connections": {"inbound": [_CONNECTION], "outbound": [_CONNECTION]},
            "info": {"name": TEXT, "namespace": TEXT, "trustDomain": TEXT, "serviceAccount": TEXT},
        }
    ),
}


def misfits(value: Any, shape: Any = DUMP, path: str = "") -> list[str]:
    """Where a value does not have the shape."""
    if value is None or shape is ANY:
        return []
    match shape:
        case dict() if isinstance(value, dict):
            inner = [(key, one, shape.get(key, ANY)) for key, one in value.items()]
        case Map() if isinstance(value, dict):
            wrong = [f"{path}.{key}" for key in value if not re.fullmatch(shape.keys, key)]
            return wrong + [
                found
                for key, one in value.items()
                for found in misfits(one, shape.values, f"{path}.{key}")
            ]
        case list() if isinstance(value, list):
            inner = [(str(place), one, shape[0]) for place, one in enumerate(value)]
        case _:
            return [] if _is_scalar(value, shape) else [f"{path}: {value!r}"]
    return [found for key, one, inside in inner for found in misfits(one, inside, f"{path}.{key}")]


def _is_scalar(value: Any, shape: Any) -> bool:
    if isinstance(shape, Number):
        return type(value) is int and 0 <= value <= shape.most
    if isinstance(shape, Matching):
        return isinstance(value, str) and re.fullmatch(shape.pattern, value) is not None
    return isinstance(value, bool if shape is FLAG else str) and shape in (TEXT, FLAG)
