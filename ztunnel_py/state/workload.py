# SPDX-License-Identifier: Apache-2.0
"""A workload: one addressable instance of the mesh, usually a pod."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from ztunnel_py.state.address import Ip, NetworkAddress


class Protocol(enum.Enum):
    """What a workload accepts; the values are those of files and dumps."""

    TCP = "TCP"
    HBONE = "HBONE"


class NetworkMode(enum.Enum):
    """Whether a workload's addresses are its own or its node's."""

    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"


class Health(enum.Enum):
    """A workload's readiness, as the control plane sees it."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class TunnelProtocol(enum.Enum):
    """What an application that terminates tunnels itself is told about a connection."""

    NONE = "NONE"
    PROXY = "PROXY"


class NamespacedHostname(NamedTuple):
    """A hostname within a namespace; the key of a service."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"

    @classmethod
    def parse(cls, text: str) -> NamespacedHostname:
        """`namespace/hostname`, split at the first slash.

        Raises:
            ValueError: no slash.
        """
        namespace, slash, hostname = text.partition("/")
        if not slash:
            raise ValueError(f"{text!r} is not namespace/hostname")
        return cls(namespace, hostname)


class Locality(NamedTuple):
    """Where a workload runs; empty parts are equal to empty parts."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


NOWHERE = Locality()


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """A reference to a waypoint or a network gateway."""

    destination: NetworkAddress | NamespacedHostname
    hbone_mtls_port: int

    def __str__(self) -> str:
        return str(self.destination)


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """The application terminates tunnels itself."""

    protocol: TunnelProtocol
    port: int | None = None
    """Where it listens; None means the requested port."""


class WorkloadInfo(NamedTuple):
    """What a proxy is told about the workload that it serves."""

    name: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.service_account}.{self.namespace} ({self.name})"


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload, as spec state section 2.2 has it."""

    namespace: str
    uid: str = ""
    """Unique; opaque but for the `//Pod/` that ranks pods first on a shared address."""
    name: str = ""
    ips: tuple[Ip, ...] = ()
    hostname: str = ""
    """Resolved by DNS where no address is usable."""
    network: str = ""
    protocol: Protocol = Protocol.TCP
    network_mode: NetworkMode = NetworkMode.STANDARD
    health: Health = Health.HEALTHY
    trust_domain: str = ""
    service_account: str = ""
    node: str = ""
    cluster_id: str = ""
    workload_name: str = ""
    """The owner (deployment, job ..): telemetry."""
    workload_type: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    locality: Locality = NOWHERE
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnel | None = None
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    services: tuple[NamespacedHostname, ...] = ()
    """Services that it is known to serve; empty in file mode, as in ztunnel."""
    authorization_policies: tuple[str, ...] = ()
    """Keys of the selector-scoped policies that apply to it."""
    capacity: int = 1
    """Relative share of a service's connections; 0 takes none."""

    def __str__(self) -> str:
        protocol = self.protocol.value
        return f"Workload{{{self.name} with uid {self.uid} ({protocol})}}"

    @property
    def identity(self) -> Identity:
        """Who it proves to be."""
        return Identity(self.trust_domain, self.namespace, self.service_account)

    @property
    def info(self) -> WorkloadInfo:
        """How a proxy asks for it."""
        return WorkloadInfo(self.name, self.namespace, self.service_account)

    @property
    def rank(self) -> int:
        """Which of several workloads on one address is found: a pod, then one that does HBONE."""
        return 2 * ("//Pod/" in self.uid) + (self.protocol is Protocol.HBONE)
