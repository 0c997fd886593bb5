# SPDX-License-Identifier: Apache-2.0
"""Short ways to write workloads, services and policies in tests."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from ztunnel_py.state.address import NetworkAddress, parse_ip
from ztunnel_py.state.policy import (
    Policy,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)
from ztunnel_py.state.service import CidrVip, Service
from ztunnel_py.state.store import PolicyUpdate, ServiceUpdate, WorkloadUpdate
from ztunnel_py.state.workload import NamespacedHostname, Protocol, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.policy import (
        Match,
    )
    from ztunnel_py.state.service import Ports


def ip(text: str) -> Ip:
    return parse_ip(text)


def at(text: str, network: str = "") -> NetworkAddress:
    return NetworkAddress(network, parse_ip(text))


def pod(
    name: str, *ips: str, serves: Mapping[str, Ports] | None = None, **fields: Any
) -> WorkloadUpdate:
    """A pod in `default` that does HBONE; `serves` maps service keys to its port mappings."""
    defaults: dict[str, Any] = {
        "namespace": "default",
        "uid": f"demo//Pod/default/{name}",
        "name": name,
        "ips": tuple(parse_ip(text) for text in ips),
        "protocol": Protocol.HBONE,
        "trust_domain": "cluster.local",
        "service_account": name,
    }
    ports = {NamespacedHostname.parse(key): mapping for key, mapping in (serves or {}).items()}
    return WorkloadUpdate(Workload(**{**defaults, **fields}), ports)


def service(
    host: str, *vips: str, ports: Ports | None = None, cidrs: tuple[str, ...] = (), **fields: Any
) -> ServiceUpdate:
    """A service in `default`; VIPs are `network/ip`, ranges `network/ip/length`."""
    ranges = (cidr.partition("/") for cidr in cidrs)
    defaults: dict[str, Any] = {
        "name": host.partition(".")[0],
        "namespace": "default",
        "hostname": host,
        "vips": tuple(NetworkAddress.parse(vip) for vip in vips),
        "cidr_vips": tuple(CidrVip(n, ipaddress.ip_network(cidr)) for n, _, cidr in ranges),
        "ports": ports or {80: 8080},
    }
    return ServiceUpdate(Service(**{**defaults, **fields}))


def policy(name: str, *matches: Match, action: str = "Allow", **fields: Any) -> PolicyUpdate:
    """A policy of namespace `default` with one rule of one clause; without matches, no rule."""
    defaults: dict[str, Any] = {
        "name": name,
        "namespace": "default",
        "scope": PolicyScope.NAMESPACE,
        "action": PolicyAction(action),
        "rules": ((matches,),) if matches else (),
    }
    made = Policy(**{**defaults, **fields})
    return PolicyUpdate(made.key, made)


def exact(text: str) -> tuple[StringMatch, ...]:
    return (StringMatch(StringMatchKind.EXACT, text),)


PRESENCE = (StringMatch(StringMatchKind.PRESENCE),)
