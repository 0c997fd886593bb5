# SPDX-License-Identifier: Apache-2.0
"""Every metric that is exposed: name, type, help, labels, in the order of the exposition.

Names, labels and types are ztunnel's; those that are marked are ours. What has no sample yet is not
shown. docs/metrics.md is made of this table, see metrics_doc.py. Source: spec dataplane, section
12.2; identity-ops, B.10 and E.2; state, 1.9 and 7.9; ztunnel src/**/metrics.rs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.decide.verdict import TrafficLabels
from ztunnel_py.errors import Flag

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS = "bytes", "seconds"
_SECURITY = TrafficLabels._fields.index("connection_security_policy")


class Metric(NamedTuple):
    """A family of samples."""

    name: str
    """Without the `_total` that samples of a counter have."""
    type: str
    help: str
    labels: tuple[str, ...] = ()
    is_ours: bool = False
    """ztunnel has none of this name."""

    @property
    def unit(self) -> str:
        """The last part of the name, if that is a unit; else empty."""
        last = self.name.rpartition("_")[2]
        return last if last in _UNITS else ""

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its samples."""
        match self.type:
            case "counter":
                return (f"{self.name}_total",)
            case "histogram":
                return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
            case _:
                return (self.name,)


TRAFFIC_LABELS = (
    *TrafficLabels._fields[:_SECURITY],
    "request_protocol",
    "response_flags",
    *TrafficLabels._fields[_SECURITY:],
)
LOOKUP_LABELS = (*TrafficLabels._fields[1:9], "hostname")
"""The client, and what was looked up."""
_DNS = (
    "request_query_type",
    "request_protocol",
    "source_canonical_service",
    "source_canonical_revision",
)


def _counter(
    name: str, help_: str, labels: tuple[str, ...] = (), *, is_ours: bool = False
) -> Metric:
    return Metric(name, "counter", help_, labels, is_ours)


def _gauge(name: str, help_: str, labels: tuple[str, ...] = (), *, is_ours: bool = False) -> Metric:
    return Metric(name, "gauge", help_, labels, is_ours)


OPEN_FDS = _gauge("process_open_fds", "Open file descriptors")
MAX_FDS = _gauge("process_max_fds", "Limit of open file descriptors")
CPU = _counter("process_cpu_seconds", "CPU time that was used, of all threads", is_ours=True)
MEMORY = _gauge("process_resident_memory_bytes", "Resident memory", is_ours=True)
STARTED = _gauge("process_start_time_seconds", "Start of the process, Unix time", is_ours=True)

BUILD = _gauge("istio_build", "Istio component build info.", ("component", "tag"))

XDS_ENDED = _counter(
    "istio_xds_connection_terminations",
    "Streams to the control plane that ended (unstable).",
    ("reason",),
)
XDS_MESSAGES = _counter("istio_xds_message", "Messages of the control plane (unstable).", ("url",))
XDS_BYTES = _counter(
    "istio_xds_message_bytes", "Bytes of their resources' payloads (unstable).", ("url",)
)

TCP_OPENED = _counter("istio_tcp_connections_opened", "TCP connections opened.", TRAFFIC_LABELS)
TCP_CLOSED = _counter("istio_tcp_connections_closed", "TCP connections closed.", TRAFFIC_LABELS)
TCP_RECEIVED = _counter(
    "istio_tcp_received_bytes", "Bytes from client to upstream.", TRAFFIC_LABELS
)
TCP_SENT = _counter("istio_tcp_sent_bytes", "Bytes from upstream to client.", TRAFFIC_LABELS)
TCP_FAILED = _counter(
    "istio_tcp_connections_failed",
    "TCP connections that ended with an error (unstable).",
    TRAFFIC_LABELS,
)
SOCKETS = _gauge(
    "istio_tcp_sockets_open", "Accepted TCP sockets that are open (unstable).", ("reporter",)
)
LOOKUPS = _counter(
    "istio_on_demand_dns",
    "The total number of requests that used on-demand DNS (unstable).",
    LOOKUP_LABELS,
)
REVOKED = _counter(
    "istio_crl_policy_rejections",
    "Connections refused or ended because the other side is revoked (unstable).",
    ("reporter",),
)

DNS_REQUESTS = _counter("istio_dns_requests", "DNS queries of pods (unstable).", _DNS)
DNS_FORWARDED = _counter(
    "istio_dns_upstream_requests", "DNS queries that were forwarded (unstable).", _DNS
)
DNS_FAILED = _counter(
    "istio_dns_upstream_failures", "DNS queries that were forwarded in vain (unstable).", _DNS
)
DNS_DURATION = Metric(
    "istio_dns_upstream_request_duration_seconds",
    "histogram",
    "How long forwarded DNS queries took (unstable).",
    _DNS,
)

PODS_ACTIVE = _gauge("workload_manager_active_proxy_count", "Proxies of pods that run (unstable).")
PODS_PENDING = _gauge(
    "workload_manager_pending_proxy_count",
    "Proxies of pods that could not be started (unstable).",
)
PODS_STARTED = _counter(
    "workload_manager_proxies_started", "Proxies of pods that were started (unstable)."
)
PODS_STOPPED = _counter(
    "workload_manager_proxies_stopped", "Proxies of pods that were stopped (unstable)."
)

CERTIFICATE_EXPIRY = _gauge(
    "istio_certificate_expiry_seconds",
    "Seconds until an identity's certificate expires (unstable).",
    ("identity",),
    is_ours=True,
)
CERTIFICATE_AGE = _gauge(
    "istio_certificate_age_seconds",
    "Seconds since an identity's certificate is valid (unstable).",
    ("identity",),
    is_ours=True,
)
CERTIFICATE_FAILURES = _counter(
    "istio_certificate_failures",
    "Fetches and renewals of certificates that failed (unstable).",
    ("identity",),
    is_ours=True,
)
XDS_CONNECTED = _gauge(
    "ztunnel_py_xds_connected",
    "Whether the control plane is heard: 1, or 0 (unstable).",
    is_ours=True,
)
LOST_LINES = _counter(
    "ztunnel_py_log_lines_lost",
    "Lines missing in the log: nobody read it, or it could not be written (unstable).",
    ("reason",),
    is_ours=True,
)
OTEL_RECORDS = _counter(
    "ztunnel_py_otel_records",
    "Access records for OpenTelemetry by what became of them (unstable).",
    ("outcome",),
    is_ours=True,
)
EVENTS = _counter(
    "ztunnel_py_events",
    "Events of the data plane by name (unstable).",
    ("event",),
    is_ours=True,
)

METRICS: tuple[Metric, ...] = (
    *(OPEN_FDS, MAX_FDS, CPU, MEMORY, STARTED),
    BUILD,
    *(XDS_ENDED, XDS_MESSAGES, XDS_BYTES),
    *(TCP_OPENED, TCP_CLOSED, TCP_RECEIVED, TCP_SENT, TCP_FAILED, SOCKETS, LOOKUPS, REVOKED),
    *(DNS_REQUESTS, DNS_FORWARDED, DNS_FAILED, DNS_DURATION),
    *(PODS_ACTIVE, PODS_PENDING, PODS_STARTED, PODS_STOPPED),
    *(CERTIFICATE_EXPIRY, CERTIFICATE_AGE, CERTIFICATE_FAILURES),
    *(XDS_CONNECTED, LOST_LINES, OTEL_RECORDS, EVENTS),
)

_OF_BOTH = {
    "workload": "name of the workload, not of the pod",
    "canonical_service": "canonical name of the workload",
    "canonical_revision": "its revision",
    "workload_namespace": "namespace of the workload",
    "principal": "SPIFFE identity, as TLS has proved it or discovery says",
    "app": "as `canonical_service`",
    "version": "as `canonical_revision`",
    "cluster": "cluster of the workload",
    "region": "region of the workload",
    "zone": "zone of the workload",
}
_SIDES = {"source": "client", "destination": "server"}
LABELS: Mapping[str, str] = MappingProxyType(
    {
        "reporter": "who tells: `source` on the client's node, `destination` on the server's",
        **{
            f"{side}_{name}": f"{who}: {meaning}"
            for side, who in _SIDES.items()
            for name, meaning in _OF_BOTH.items()
        },
        "destination_service": "hostname of the service that was meant, not of its waypoint",
        "destination_service_namespace": "its namespace",
        "destination_service_name": "its name",
        "request_protocol": "always `tcp`; of DNS `udp` or `tcp`",
        "response_flags": "how it ended, "
        + ", ".join(f"`{flag.value}`" for flag in Flag)
        + "; `-` is in order",
        "connection_security_policy": "`mutual_tls` or `unknown`",
        "request_query_type": "type of a DNS query, lower case",
        "hostname": "what was looked up",
        "identity": "SPIFFE identity of a local workload",
        "component": "always `ztunnel`",
        "tag": "Istio's version, from `ISTIO_META_ISTIO_VERSION`",
        "reason": "of streams to the control plane `ConnectionError`, `Error`, `Reconnect` or "
        "`Complete`; of lost log lines `full` or `failed`",
        "outcome": "`exported`, `dropped` for want of room, or `failed`",
        "url": "type URL of a resource",
        "event": "a line of `ztunnel_py/core/stats.def`, or its like of the reference engine",
        "le": "upper bound of a bucket",
    }
)
"""What each label says."""
