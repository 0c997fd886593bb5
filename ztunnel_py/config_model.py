# SPDX-License-Identifier: Apache-2.0
"""Settings as the rest of the program sees them: one frozen value.

Which variable sets a field, its default and its meaning: config_settings.py.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.dataplane.abc import EngineSettings, ListenAddress, Role, SocketOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ztunnel_py.config_values import Bind, Secret

INBOUND_PORT = 15008
PASSTHROUGH_PORT = 15006
OUTBOUND_PORT = 15001
SOCKS5_PORT = 15080
ADMIN_PORT = 15000
STATS_PORT = 15020
READINESS_PORT = 15021
FLOWS_PER_WORKLOAD = 4096
"""Verdicts that an engine may keep for one workload."""


class ProxyMode(enum.Enum):
    """Whom one process serves."""

    SHARED = "shared"
    """All pods of a node, as the CNI agent names them."""
    DEDICATED = "dedicated"
    """One workload, in whose network namespace the process runs."""


class IdentitySource(enum.Enum):
    """Where certificates come from."""

    ISTIOD = "istiod"
    """The mesh's authority, at `CA_ADDRESS`."""
    FAKE = "fake"
    """A development CA in this process."""
    FILES = "files"
    """Files that something else renews."""
    SPIFFE = "spiffe"
    """The SPIFFE Workload API."""
    SPIRE = "spire"
    """SPIRE's Delegated Identity API."""


class IdentityFiles(NamedTuple):
    """A certificate with its intermediates, its key, and whom it trusts; PEM."""

    certificate: Path
    key: Path
    roots: Path


class WorkloadName(NamedTuple):
    """Which workload a dedicated proxy serves."""

    namespace: str
    name: str
    service_account: str


def wildcard(*, ipv6: bool) -> str:
    """The address of listeners for everybody."""
    return "::" if ipv6 else "0.0.0.0"  # noqa: S104 - captured traffic comes from anywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one process. Times in seconds, sizes in bytes."""

    # --- what runs

    proxy: bool
    mode: ProxyMode
    workload: WorkloadName | None
    dataplane: str
    workers: int

    # --- who and where

    network: str
    node_name: str | None
    cluster_id: str
    cluster_domain: str
    preferred_service_namespace: str | None
    pod_name: str | None
    pod_namespace: str | None
    service_account: str | None
    trust_domain: str
    instance_ip: str
    istio_version: str
    metadata: Mapping[str, str]
    metadata_json: Mapping[str, object]

    # --- what is known: control plane or local state

    xds_address: str | None
    xds_root_ca: str
    alt_xds_hostname: str | None
    xds_headers: tuple[tuple[str, Secret], ...]
    xds_on_demand: bool
    resolv_conf: Path
    local_xds_path: Path | None
    local_xds: str | None

    # --- identity

    identity_source: IdentitySource
    identity_files: IdentityFiles | None
    spiffe_socket: Path | None
    spire_socket: Path
    ca_address: str | None
    ca_root_ca: str
    alt_ca_hostname: str | None
    ca_headers: tuple[tuple[str, Secret], ...]
    auth_token: Secret | None
    secret_ttl_s: float
    fake_ca: bool
    fake_ca_root_cert: Path | None
    fake_ca_root_key: Path | None
    crl_path: Path | None
    compliance_policy: str
    tls12: bool

    # --- sockets

    ipv6: bool
    has_ipv6_loopback: bool
    packet_mark: int | None
    orig_src: bool | None
    keepalive: bool
    keepalive_time_s: float
    keepalive_interval_s: float
    keepalive_retries: int
    user_timeout: bool

    # --- HBONE

    stream_window: int
    connection_window: int
    frame_size: int
    pool_max_streams: int
    pool_idle_s: float
    localhost_app_tunnel: bool
    response_baggage: bool
    socks5: bool

    # --- life

    drain_deadline_s: float
    inpod_uds: Path
    inpod_port_reuse: bool

    # --- looking at it

    admin: Bind
    stats: Bind
    readiness: Bind
    dns_proxy: bool
    dns: Bind
    log_filter: str
    is_log_json: bool
    authz_info_logging: bool
    otel: frozenset[str]
    """Signals that are exported; see config_otel.py."""
    warnings: tuple[str, ...]

    def listeners(self) -> tuple[ListenAddress, ...]:
        """The proxy's listeners in the order they are bound."""
        everybody = wildcard(ipv6=self.ipv6)
        captured = (
            ListenAddress(Role.INBOUND, everybody, INBOUND_PORT),
            ListenAddress(Role.PASSTHROUGH, everybody, PASSTHROUGH_PORT),
            ListenAddress(Role.OUTBOUND, everybody, OUTBOUND_PORT),
        )
        if not self.socks5:
            return captured
        return (*captured, ListenAddress(Role.SOCKS5, "127.0.0.1", SOCKS5_PORT))

    def illegal_ports(self) -> frozenset[int]:
        """The proxy's own ports: refused as targets, or connections would go round in circles."""
        return frozenset(listener.port for listener in self.listeners())

    def engine_settings(self) -> EngineSettings:
        """What the engine is told."""
        return EngineSettings(
            stream_window=self.stream_window,
            connection_window=self.connection_window,
            frame_size=self.frame_size,
            pool_max_streams=self.pool_max_streams,
            pool_idle_s=self.pool_idle_s,
            tls12=self.tls12,
            post_quantum=self.compliance_policy == "pqc",
            orig_src=self.orig_src,
            workers=self.workers,
            flows_per_workload=FLOWS_PER_WORKLOAD,
            sockets=SocketOptions(
                keepalive=self.keepalive,
                keepalive_time_s=math.ceil(self.keepalive_time_s),
                keepalive_interval_s=math.ceil(self.keepalive_interval_s),
                keepalive_retries=self.keepalive_retries,
                user_timeout=self.user_timeout,
                mark=self.packet_mark,
                port_reuse=self.inpod_port_reuse,
            ),
        )
