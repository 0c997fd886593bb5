# SPDX-License-Identifier: Apache-2.0
"""The `config` object of `/config_dump`, with ztunnel's keys and encodings.

Header values and the token are left out: ztunnel prints the former, and they are secrets.
Source: spec identity-ops, section D.3.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py.config_model import (
    INBOUND_PORT,
    OUTBOUND_PORT,
    PASSTHROUGH_PORT,
    SOCKS5_PORT,
    wildcard,
)
from ztunnel_py.config_values import LOCALHOST

if TYPE_CHECKING:
    from ztunnel_py.config_model import Config
    from ztunnel_py.config_values import Bind, Secret


def dump_config(config: Config) -> dict[str, object]:
    """The settings in effect."""
    everybody = wildcard(ipv6=config.ipv6)
    return {
        "proxy": config.proxy,
        "dnsProxy": config.dns_proxy,
        "dataplane": config.dataplane,
        "windowSize": config.stream_window,
        "connectionWindowSize": config.connection_window,
        "frameSize": config.frame_size,
        "poolMaxStreamsPerConn": config.pool_max_streams,
        "poolUnusedReleaseTimeout": _duration(config.pool_idle_s),
        "socks5Addr": _socket("127.0.0.1", SOCKS5_PORT) if config.socks5 else None,
        "adminAddr": _bind(config.admin, config),
        "statsAddr": _bind(config.stats, config),
        "readinessAddr": _bind(config.readiness, config),
        "inboundAddr": _socket(everybody, INBOUND_PORT),
        "inboundPlaintextAddr": _socket(everybody, PASSTHROUGH_PORT),
        "outboundAddr": _socket(everybody, OUTBOUND_PORT),
        "dnsProxyAddr": _bind(config.dns, config),
        "illegalPorts": sorted(config.illegal_ports()),
        "network": config.network,
        "localNode": config.node_name,
        "proxyMode": config.mode.value.capitalize(),
        "clusterId": config.cluster_id,
        "clusterDomain": config.cluster_domain,
        "preferedServiceNamespace": config.preferred_service_namespace,
        "selfTerminationDeadline": _duration(config.drain_deadline_s),
        "proxyMetadata": dict(config.metadata),
        "numWorkerThreads": config.workers,
        "requireOriginalSource": config.orig_src,
        "proxyArgs": " ".join(sys.argv[1:]),
        "dnsResolverCfg": None,
        "dnsResolverOpts": None,
        "inpodUds": str(config.inpod_uds),
        "inpodPortReuse": config.inpod_port_reuse,
        "packetMark": config.packet_mark,
        "localhostAppTunnel": config.localhost_app_tunnel,
        "ipv6Enabled": config.ipv6,
        "enableEnhancedBaggage": config.response_baggage,
        "socketConfig": _socket_config(config),
        **_identity(config),
        **_control_plane(config),
    }


def _socket_config(config: Config) -> dict[str, object]:
    return {
        "keepaliveTime": _duration(config.keepalive_time_s),
        "keepaliveInterval": _duration(config.keepalive_interval_s),
        "keepaliveRetries": config.keepalive_retries,
        "keepaliveEnabled": config.keepalive,
        "userTimeoutEnabled": config.user_timeout,
    }


def _identity(config: Config) -> dict[str, object]:
    served = config.workload
    own = (config.pod_namespace, config.pod_name, config.service_account)
    namespace, _, account = own
    has_own = None not in own
    return {
        "proxyWorkloadInformation": _workload(*served) if served else None,
        "ztunnelWorkload": _workload(*own) if has_own else None,
        "ztunnelIdentity": f"spiffe://{config.trust_domain}/ns/{namespace}/sa/{account}"
        if has_own
        else None,
        "secretTtl": _duration(config.secret_ttl_s),
        "fakeCa": config.fake_ca,
        "fakeSelfInbound": False,
        "crlPath": str(config.crl_path) if config.crl_path else None,
    }


def _control_plane(config: Config) -> dict[str, object]:
    return {
        "caAddress": config.ca_address,
        "caRootCert": _root(config.ca_root_ca),
        "altCaHostname": config.alt_ca_hostname,
        "caHeaders": _headers(config.ca_headers),
        "xdsAddress": config.xds_address,
        "xdsRootCert": _root(config.xds_root_ca),
        "altXdsHostname": config.alt_xds_hostname,
        "xdsHeaders": _headers(config.xds_headers),
        "xdsOnDemand": config.xds_on_demand,
    }


def _duration(seconds: float) -> dict[str, int]:
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return {"secs": whole, "nanos": nanos}


def _socket(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(bind: Bind, config: Config) -> dict[str, object]:
    if bind.host == LOCALHOST:
        return {"Localhost": [config.has_ipv6_loopback, bind.port]}
    return {"SocketAddr": _socket(*bind)}


def _workload(namespace: str | None, name: str | None, account: str | None) -> dict[str, object]:
    return {"namespace": namespace, "name": name, "serviceAccount": account}


def _root(source: str) -> object:
    if source == "SYSTEM":
        return "Default"
    try:
        return {"File": source} if Path(source).exists() else "Static"
    except OSError:  # PEM text is too long for a path
        return "Static"


def _headers(headers: tuple[tuple[str, Secret], ...]) -> list[list[str]]:
    return [[name, str(secret)] for name, secret in headers]
