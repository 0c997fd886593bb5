# SPDX-License-Identifier: Apache-2.0
"""The variables that are read: name, grammar, default, meaning.

Reading (`config.load`) and docs/configuration.md follow from this table. Times are durations such
as `90s`; sizes are bytes. Source: spec identity-ops, section C.2; ztunnel src/config.rs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ztunnel_py import config_values as values
from ztunnel_py.config_mesh import META, VARIABLE
from ztunnel_py.config_otel import PREFIX
from ztunnel_py.config_values import Secret
from ztunnel_py.telemetry.filter import ALWAYS, DEFAULT, Filter

if TYPE_CHECKING:
    from collections.abc import Callable

META_JSON = "ISTIO_METAJSON_"
XDS_HEADER = "XDS_HEADER_"
CA_HEADER = "CA_HEADER_"
KEY = "<KEY>"
"""Ends the name of a variable that stands for all with its prefix."""
_U16, _U31, _U32, _U64 = 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**64 - 1


class Kind(NamedTuple):
    """How the text of a variable is read, and what it is called in the documentation."""

    parse: Callable[[str], Any]
    unit: str


class Setting(NamedTuple):
    """One variable; `default` is the text assumed when it is unset."""

    field: str
    """The field of `Config` that it sets, alone or with others."""
    variable: str
    kind: Kind
    default: str | None
    meaning: str


def _path(value: str) -> Path | None:
    return Path(value) if value else None


def _log_filter(value: str) -> str:
    Filter.parse(ALWAYS + value)
    return value


def _json(value: str) -> Any:  # noqa: ANN401 - whatever it is
    """JSON whose numbers fit the messages of the control plane, which know doubles only."""
    return json.loads(value, parse_int=_integer, parse_constant=_no_number)


def _integer(digits: str) -> int:
    number = int(digits)
    try:
        float(number)
    except OverflowError as error:
        raise ValueError(f"a number of {len(digits)} digits") from error
    return number


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_BOOL = Kind(values.boolean, "boolean")
_CPUS = Kind(values.cpus, "CPUs")
_NAME = Kind(values.text, "name")
_DOMAIN = Kind(values.text, "domain")
_SERVER = Kind(values.text, "host:port or URL")
_ROOTS = Kind(values.text, "path, PEM or SYSTEM")
_SECRET_TEXT = Kind(Secret, "text")
_FILE = Kind(Path, "path")
_TIME = Kind(values.duration_s, "duration")
_PATH = Kind(_path, "path")
_IS_TRUE = Kind(values.is_true, "true or other")


SETTINGS: tuple[Setting, ...] = (
    # --- what runs
    Setting("proxy", "ENABLE_PROXY", _BOOL, "true", "run the HBONE and TCP proxy"),
    Setting(
        "mode",
        "PROXY_MODE",
        Kind(values.one_of("shared", "dedicated"), "word"),
        "shared",
        "`shared`: all pods of a node; `dedicated`: one workload, in its own namespace",
    ),
    Setting(
        "workload",
        "PROXY_WORKLOAD_INFO",
        Kind(values.workload_name, "namespace/name/service account"),
        None,
        "the workload that a dedicated proxy serves; required there",
    ),
    Setting(
        "dataplane",
        "ZTUNNEL_DATAPLANE",
        Kind(values.one_of("native", "reference"), "word"),
        "native",
        "engine that moves bytes: `native` (C) or `reference` (Python); ours",
    ),
    Setting(
        "workers",
        "ZTUNNEL_WORKER_THREADS",
        Kind(values.threads, "threads or %"),
        None,
        "worker threads, or a share of the CPUs; 0 is all CPUs; wins over `concurrency`; "
        "unset: a quarter of the CPUs, at least 2 and the request, or the limit if set",
    ),
    Setting(
        "workers",
        "ZTUNNEL_RESOURCE_CPU_LIMIT",
        _CPUS,
        None,
        "explicit CPU limit, a Kubernetes quantity, rounded up",
    ),
    Setting(
        "workers",
        "ZTUNNEL_RESOURCE_CPU_REQUEST",
        _CPUS,
        None,
        "explicit CPU request, a Kubernetes quantity, rounded up",
    ),
    Setting(
        "workers",
        "ZTUNNEL_CPU_LIMIT",
        Kind(values.integer(0, _U16), "CPUs"),
        None,
        "CPUs that may be used; the node's where there is no limit",
    ),
    # --- who and where
    Setting("network", "NETWORK", _NAME, "", "network of this node, as the mesh names it"),
    Setting("node_name", "NODE_NAME", _NAME, None, "Kubernetes node"),
    Setting("cluster_id", f"{META}CLUSTER_ID", _NAME, None, "cluster id; wins over `CLUSTER_ID`"),
    Setting("cluster_id", "CLUSTER_ID", _NAME, "Kubernetes", "cluster id"),
    Setting("cluster_domain", "CLUSTER_DOMAIN", _DOMAIN, "cluster.local", "DNS cluster domain"),
    Setting(
        "preferred_service_namespace",
        "PREFERED_SERVICE_NAMESPACE",
        _NAME,
        None,
        "namespace preferred when a hostname exists in several (spelt as in Istio)",
    ),
    Setting("pod_name", "POD_NAME", _NAME, None, "the proxy's own pod"),
    Setting("pod_namespace", "POD_NAMESPACE", _NAME, None, "namespace of the proxy's own pod"),
    Setting("service_account", "SERVICE_ACCOUNT", _NAME, None, "the proxy's own account"),
    Setting(
        "trust_domain", "TRUST_DOMAIN", _DOMAIN, "cluster.local", "trust domain of the proxy itself"
    ),
    Setting(
        "instance_ip",
        "INSTANCE_IP",
        Kind(values.text, "address"),
        "1.1.1.1",
        "address reported to the control plane",
    ),
    Setting(
        "istio_version",
        f"{META}ISTIO_VERSION",
        Kind(values.text, "version"),
        "unknown",
        "tag of the `istio_build` metric",
    ),
    Setting(
        "metadata",
        f"{META}{KEY}",
        Kind(values.text, "text"),
        None,
        "proxy metadata; overrides `proxyMetadata` of ProxyConfig and mesh file",
    ),
    Setting(
        "metadata_json",
        f"{META_JSON}{KEY}",
        Kind(_json, "JSON"),
        None,
        "proxy metadata that is not text; invalid JSON is skipped with a warning",
    ),
    # --- what is known: control plane or local state
    Setting(
        "xds_address",
        "XDS_ADDRESS",
        _SERVER,
        None,
        "control plane; empty: none; unset: `discoveryAddress`, else istiod",
    ),
    Setting(
        "xds_address",
        "KUBERNETES_SERVICE_HOST",
        Kind(values.text, "presence"),
        None,
        "istiod's default address is that of a cluster rather than localhost",
    ),
    Setting(
        "xds_root_ca",
        "XDS_ROOT_CA",
        _ROOTS,
        "./var/run/secrets/istio/root-cert.pem",
        "what the control plane's certificate is verified with",
    ),
    Setting(
        "alt_xds_hostname",
        "ALT_XDS_HOSTNAME",
        _NAME,
        None,
        "second name accepted from the control plane",
    ),
    Setting(
        "xds_headers",
        f"{XDS_HEADER}{KEY}",
        _SECRET_TEXT,
        None,
        "header of discovery requests; never printed",
    ),
    Setting(
        "xds_on_demand", "XDS_ON_DEMAND", _BOOL, "false", "ask for workloads when they are needed"
    ),
    Setting(
        "resolv_conf",
        "ZTUNNEL_RESOLV_CONF",
        _FILE,
        "/etc/resolv.conf",
        "DNS servers that are asked for names outside of the mesh, and for workloads that have a "
        "hostname only; ours",
    ),
    Setting("local_xds_path", "LOCAL_XDS_PATH", _FILE, None, "YAML file with local state"),
    Setting(
        "local_xds",
        "LOCAL_XDS",
        Kind(values.text, "YAML"),
        None,
        "local state itself; not with `LOCAL_XDS_PATH`",
    ),
    # --- identity
    Setting(
        "identity_source",
        "ZTUNNEL_IDENTITY_SOURCE",
        Kind(values.one_of("istiod", "files", "spiffe", "spire"), "word"),
        "istiod",
        "who vouches for workloads: `istiod`, `files`, `spiffe` (Workload API) or `spire` "
        "(Delegated Identity API), see identities.md; ours",
    ),
    Setting(
        "identity_files",
        "ZTUNNEL_CERTIFICATE_FILE",
        _PATH,
        None,
        "certificate and intermediates, PEM; with `files`; ours",
    ),
    Setting("identity_files", "ZTUNNEL_KEY_FILE", _PATH, None, "its key, PEM; with `files`; ours"),
    Setting(
        "identity_files",
        "ZTUNNEL_ROOTS_FILE",
        _PATH,
        None,
        "certificates to trust, PEM; with `files`; ours",
    ),
    Setting(
        "spiffe_socket",
        "SPIFFE_ENDPOINT_SOCKET",
        Kind(values.unix_socket, "unix:///path"),
        None,
        "the agent's Workload API; with `spiffe`; the standard's variable",
    ),
    Setting(
        "spire_socket",
        "SPIRE_ADMIN_SOCKET",
        Kind(values.unix_socket, "unix:///path"),
        "unix:///run/spire/admin/api.sock",
        "the agent's admin socket; with `spire`; ours",
    ),
    Setting("ca_address", "CA_ADDRESS", _SERVER, None, "certificate authority; unset: istiod"),
    Setting(
        "ca_root_ca",
        "CA_ROOT_CA",
        _ROOTS,
        "./var/run/secrets/istio/root-cert.pem",
        "what the authority's server certificate is verified with",
    ),
    Setting(
        "alt_ca_hostname", "ALT_CA_HOSTNAME", _NAME, None, "second name accepted from the authority"
    ),
    Setting(
        "ca_headers",
        f"{CA_HEADER}{KEY}",
        _SECRET_TEXT,
        None,
        "header of signing requests; never printed",
    ),
    Setting(
        "auth_token",
        "AUTH_TOKEN",
        Kind(Secret, "path or token"),
        None,
        "token for both servers; unset: ./var/run/secrets/tokens/istio-token; never printed",
    ),
    Setting("secret_ttl_s", "SECRET_TTL", _TIME, "24h", "certificate lifetime to ask for"),
    Setting("fake_ca", "FAKE_CA", _BOOL, "false", "sign certificates locally: development only"),
    Setting(
        "fake_ca_root_cert", "FAKE_CA_ROOT_CERT", _PATH, None, "root of the fake CA, PEM; ours"
    ),
    Setting(
        "fake_ca_root_key", "FAKE_CA_ROOT_KEY", _PATH, None, "key of the fake CA's root, PEM; ours"
    ),
    Setting("crl_path", "CRL_PATH", _PATH, None, "revocation lists; empty: none"),
    Setting(
        "compliance_policy",
        "COMPLIANCE_POLICY",
        Kind(values.text, "word"),
        "",
        "`pqc`: post-quantum key exchange only",
    ),
    Setting("tls12", "TLS12_ENABLED", _IS_TRUE, "false", "also accept TLS 1.2"),
    # --- sockets
    Setting("ipv6", "IPV6_ENABLED", _BOOL, "true", "listen on [::]; false: on 0.0.0.0"),
    Setting(
        "packet_mark",
        "PACKET_MARK",
        Kind(values.integer(0, _U32), "number"),
        None,
        "SO_MARK of the proxy's own connections; unset: 1337 in shared mode, none in dedicated",
    ),
    Setting(
        "orig_src",
        "ENABLE_ORIG_SRC",
        _BOOL,
        None,
        "dial applications from the client's address; unset: where permitted",
    ),
    Setting("keepalive", "KEEPALIVE_ENABLED", _BOOL, "true", "TCP keepalive"),
    Setting("keepalive_time_s", "KEEPALIVE_TIME", _TIME, "180s", "idle time before a probe"),
    Setting("keepalive_interval_s", "KEEPALIVE_INTERVAL", _TIME, "180s", "time between probes"),
    Setting(
        "keepalive_retries",
        "KEEPALIVE_RETRIES",
        Kind(values.integer(0, _U32), "number"),
        "9",
        "probes before giving up",
    ),
    Setting(
        "user_timeout",
        "USER_TIMEOUT_ENABLED",
        _BOOL,
        "false",
        "bound unacknowledged data by keepalive time + retries * interval",
    ),
    # --- HBONE
    Setting(
        "stream_window",
        "HTTP2_STREAM_WINDOW_SIZE",
        Kind(values.integer(0, _U31), "bytes"),
        "4194304",
        "window of a stream",
    ),
    Setting(
        "connection_window",
        "HTTP2_CONNECTION_WINDOW_SIZE",
        Kind(values.integer(0, _U31), "bytes"),
        "16777216",
        "window of a tunnel",
    ),
    Setting(
        "frame_size",
        "HTTP2_FRAME_SIZE",
        Kind(values.integer(16_384, 16_777_215), "bytes"),
        "1048576",
        "largest frame accepted",
    ),
    Setting(
        "pool_max_streams",
        "POOL_MAX_STREAMS_PER_CONNECTION",
        Kind(values.integer(0, _U16), "streams"),
        "100",
        "streams of one outbound tunnel before another is opened",
    ),
    Setting(
        "pool_idle_s",
        "POOL_UNUSED_RELEASE_TIMEOUT",
        _TIME,
        "300s",
        "how long an outbound tunnel without streams is kept",
    ),
    Setting(
        "localhost_app_tunnel",
        "LOCALHOST_APP_TUNNEL",
        _BOOL,
        "true",
        "deliver PROXY-protocol application tunnels to localhost",
    ),
    Setting(
        "response_baggage",
        "ENABLE_RESPONSE_BAGGAGE",
        _BOOL,
        "true",
        "send and use baggage in CONNECT responses",
    ),
    Setting("socks5", "UNSTABLE_ENABLE_SOCKS5", _BOOL, "false", "SOCKS5 on 127.0.0.1:15080"),
    # --- life
    Setting(
        "drain_deadline_s",
        "CONNECTION_TERMINATION_DEADLINE",
        _TIME,
        None,
        "how long connections may finish after SIGTERM; unset: from the next, else 5 s",
    ),
    Setting(
        "drain_deadline_s",
        "TERMINATION_GRACE_PERIOD_SECONDS",
        Kind(values.integer(0, _U64), "seconds"),
        None,
        "the pod's grace period; 5 s (1 s up to 10 s) of it are kept back",
    ),
    Setting(
        "inpod_uds",
        "INPOD_UDS",
        _FILE,
        "/var/run/ztunnel/ztunnel.sock",
        "socket of the CNI agent; shared mode",
    ),
    Setting(
        "inpod_port_reuse",
        "INPOD_PORT_REUSE",
        _BOOL,
        "true",
        "SO_REUSEPORT on listeners in pods; shared mode",
    ),
    # --- looking at it
    Setting(
        "admin",
        VARIABLE,
        Kind(values.text, "YAML"),
        None,
        "ProxyConfig over the mesh file `./etc/istio/config/mesh`: discoveryAddress, "
        "proxyAdminPort (15000), statsPort (15020), concurrency, proxyMetadata (required)",
    ),
    Setting(
        "dns_proxy",
        f"{META}DNS_CAPTURE",
        Kind(values.text, "true or other"),
        None,
        "answer DNS queries of pods; on unless set to something else (metadata `DNS_CAPTURE`)",
    ),
    Setting(
        "dns",
        f"{META}DNS_PROXY_ADDR",
        Kind(values.bind, "host:port"),
        "localhost:15053",
        "where DNS queries are answered (metadata `DNS_PROXY_ADDR`)",
    ),
    Setting("log_filter", "RUST_LOG", Kind(_log_filter, "filter"), DEFAULT, "what is logged"),
    Setting(
        "is_log_json",
        "LOG_FORMAT",
        Kind(lambda value: value == "json", "word"),
        "plain",
        "`json`: one object per line; else tab-separated text",
    ),
    Setting(
        "authz_info_logging",
        "AUTHZ_POLICY_INFO_LOGGING",
        _IS_TRUE,
        "false",
        "log authorization decisions at info rather than debug",
    ),
    Setting(
        "otel",
        f"{PREFIX}{KEY}",
        Kind(values.text, "text"),
        None,
        "the standard variables of OpenTelemetry; an `OTEL_EXPORTER_OTLP_ENDPOINT` has access "
        "records and spans of connections sent there; needs `ztunnel-py[otel]`; ours",
    ),
)
"""Every variable, in the order of the documentation."""

BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}
"""The same by name."""
