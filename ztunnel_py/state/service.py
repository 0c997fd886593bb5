# SPDX-License-Identifier: Apache-2.0
"""A service: a name, its addresses and ports, and how connections spread over its endpoints."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.workload import Health, NamespacedHostname

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ztunnel_py.state.address import Cidr, Ip, NetworkAddress
    from ztunnel_py.state.workload import GatewayAddress

Ports = Mapping[int, int]
"""Service port to target port; target 0 is a named port that only the endpoint knows."""


class Scope(enum.Enum):
    """What a routing preference compares."""

    REGION = "Region"
    ZONE = "Zone"
    SUBZONE = "Subzone"
    NODE = "Node"
    CLUSTER = "Cluster"
    NETWORK = "Network"


class BalanceMode(enum.Enum):
    """How routing preferences are used."""

    STANDARD = "Standard"
    STRICT = "Strict"
    FAILOVER = "Failover"
    PASSTHROUGH = "Passthrough"


class HealthPolicy(enum.Enum):
    """Which endpoints a service keeps."""

    ONLY_HEALTHY = "OnlyHealthy"
    ALLOW_ALL = "AllowAll"


class IpFamilies(enum.Enum):
    """The families in which a service may be reached."""

    DUAL = "Dual"
    IPV4 = "IPv4"
    IPV6 = "IPv6"

    def accepts(self, ip: Ip) -> bool:
        """Whether an endpoint may be dialled at `ip`."""
        return self is IpFamilies.DUAL or (ip.version == 4) == (self is IpFamilies.IPV4)


class Visibility(enum.Enum):
    """Who finds a service."""

    PUBLIC = "Public"
    NAMESPACE = "Namespace"


class LoadBalancer(NamedTuple):
    """How a service's endpoints are preferred."""

    routing_preferences: tuple[Scope, ...] = ()
    mode: BalanceMode = BalanceMode.STANDARD
    health_policy: HealthPolicy = HealthPolicy.ONLY_HEALTHY


class Endpoint(NamedTuple):
    """A workload's part in a service."""

    workload_uid: str
    ports: Ports
    health: Health = Health.HEALTHY


class CidrVip(NamedTuple):
    """A range of addresses that a service answers for."""

    network: str
    cidr: Cidr


class WeightedWaypoint(NamedTuple):
    """One of several waypoints among which connections are divided."""

    destination: GatewayAddress
    weight: int


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as spec state section 2.2 has it; its endpoints are held by the store."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[NetworkAddress, ...] = ()
    cidr_vips: tuple[CidrVip, ...] = ()
    ports: Ports = field(default_factory=dict)
    subject_alt_names: tuple[str, ...] = ()
    """As written; those that are no SPIFFE identity are kept for dumps only."""
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancer: LoadBalancer | None = None
    ip_families: IpFamilies | None = None
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC
    sans: tuple[Identity, ...] = field(init=False)
    """Accepted besides an endpoint's own identity: the alternative names that parse."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sans", tuple(_identities(self.subject_alt_names)))

    @property
    def key(self) -> NamespacedHostname:
        """What names it: one service per namespace and hostname."""
        return NamespacedHostname(self.namespace, self.hostname)

    @property
    def is_passthrough(self) -> bool:
        """Whether its addresses are dialled as they are."""
        balancer = self.load_balancer
        return balancer is not None and balancer.mode is BalanceMode.PASSTHROUGH

    def is_visible_to(self, namespace: str | None) -> bool:
        """Whether a client of `namespace` finds it; None asks on nobody's behalf."""
        return (
            self.visibility is Visibility.PUBLIC or namespace is None or namespace == self.namespace
        )

    def keeps(self, endpoint: Endpoint) -> bool:
        """Whether `endpoint` is healthy enough for it."""
        balancer = self.load_balancer
        return endpoint.health is Health.HEALTHY or (
            balancer is not None and balancer.health_policy is HealthPolicy.ALLOW_ALL
        )


def _identities(names: Iterable[str]) -> Iterator[Identity]:
    """Names that are no SPIFFE identity can never be presented, so they are left out."""
    for name in names:
        with contextlib.suppress(ValueError):
            yield Identity.parse(name)
