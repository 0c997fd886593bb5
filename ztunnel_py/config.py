# SPDX-License-Identifier: Apache-2.0
"""Reads the settings: environment, ProxyConfig and mesh file into one `Config`.

A wrong value stops the start with an error that names its variable; what this version cannot do
yet is refused in `refuse_unbuilt`, never silently ignored.
Source: spec identity-ops, sections C.1 to C.4; ztunnel src/config.rs.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztunnel_py import config_otel
from ztunnel_py import config_values as values
from ztunnel_py.config_mesh import META, load_proxy_config
from ztunnel_py.config_model import (
    ADMIN_PORT,
    READINESS_PORT,
    STATS_PORT,
    Config,
    IdentityFiles,
    IdentitySource,
    ProxyMode,
    WorkloadName,
    wildcard,
)
from ztunnel_py.config_settings import (
    BY_VARIABLE,
    CA_HEADER,
    KEY,
    META_JSON,
    SETTINGS,
    XDS_HEADER,
)
from ztunnel_py.config_values import LOCALHOST, Bind, Secret
from ztunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.config_mesh import ProxyConfig

__all__ = ["Config", "ProxyMode", "WorkloadName", "load", "refuse_unbuilt"]

_IPV6_OFF_ON_LOOPBACK = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_OF_ONE_WORKLOAD = IdentitySource.FILES, IdentitySource.SPIFFE
_IDENTITY_FILES = "ZTUNNEL_CERTIFICATE_FILE", "ZTUNNEL_KEY_FILE", "ZTUNNEL_ROOTS_FILE"
_TOKEN_FILE = "./var/run/secrets/tokens/istio-token"  # noqa: S105 - a path
_SHARED_MARK = 1337
_LEAST_THREADS = 2
_CPU_SHARE = 0.25
_DRAIN_S = 5.0


def load(environ: Mapping[str, str], cwd: Path | str = ".", *, cpus: int | None = None) -> Config:
    """The settings that `environ` and the mesh file under `cwd` ask for.

    Args:
        environ: variables; one that is not valid UTF-8 counts as unset.
        cwd: directory that relative paths of ztunnel start from.
        cpus: logical CPUs of the machine; None asks the kernel.

    Raises:
        ConfigError: a value is wrong, or two contradict each other.
    """
    known = {name: text for name, text in environ.items() if _is_utf8(text)}
    read = _Reader(known)
    proxy_config = load_proxy_config(known, Path(cwd))
    warnings: list[str] = []
    computed: dict[str, Any] = {
        "workers": _workers(read, proxy_config, cpus or len(os.sched_getaffinity(0))),
        "metadata": proxy_config.metadata,
        "metadata_json": _metadata_json(known, warnings),
        **_mode(read),
        **_control_plane(read, known, proxy_config, Path(cwd)),
        **_binds(read, proxy_config, warnings),
        **_dns(proxy_config),
        "drain_deadline_s": _drain_deadline_s(read),
        "otel": config_otel.signals(known),
        "warnings": (),
    }
    alone = {s.field: s.variable for s in SETTINGS if s.field not in computed}
    read_alone = {name: read(variable) for name, variable in alone.items()}
    config = Config(**read_alone | computed)
    _check(config)
    return dataclasses.replace(config, warnings=tuple(warnings))


def refuse_unbuilt(config: Config) -> None:
    """Refuses what a later version will do.

    Raises:
        ConfigError: the settings ask for it; the message says what to set instead.
    """
    if not config.proxy:
        raise ConfigError("ENABLE_PROXY=false: this version has no DNS proxy that runs alone")


class _Reader:
    """Values of variables by the grammar of each."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __call__(self, variable: str) -> Any:  # noqa: ANN401 - each variable has its own type
        """The value; that of the default text when unset, None when there is none.

        Raises:
            ConfigError: the text does not follow the grammar.
        """
        setting = BY_VARIABLE[variable]
        text = self._environ.get(variable, setting.default)
        if text is None:
            return None
        try:
            return setting.kind.parse(text)
        except ValueError as error:
            raise _invalid(variable, text, str(error)) from error

    def has(self, variable: str) -> bool:
        """Whether the variable is set."""
        return variable in self._environ


def _invalid(variable: str, text: str, expected: str) -> ConfigError:
    return ConfigError(f"invalid value {variable}={text!r}: {expected}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mode(read: _Reader) -> dict[str, Any]:
    mode = ProxyMode(read("PROXY_MODE"))
    is_shared = mode is ProxyMode.SHARED
    workload = None if is_shared else read("PROXY_WORKLOAD_INFO")
    if workload is None and not is_shared:
        raise ConfigError(
            "PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO=namespace/name/service-account"
        )
    mark = read("PACKET_MARK")
    return {
        "mode": mode,
        "workload": None if workload is None else WorkloadName(*workload),
        "packet_mark": _SHARED_MARK if mark is None and is_shared else mark,
    }


def _control_plane(
    read: _Reader, environ: Mapping[str, str], proxy_config: ProxyConfig, cwd: Path
) -> dict[str, Any]:
    host = "istiod.istio-system.svc" if read.has("KUBERNETES_SERVICE_HOST") else "localhost"
    istiod = f"https://{host}:15012"
    xds = read("XDS_ADDRESS")
    if xds is None:
        xds = istiod if proxy_config.discovery_address is None else proxy_config.discovery_address
    token = read("AUTH_TOKEN")
    if token is None and (cwd / _TOKEN_FILE).exists():
        token = Secret(_TOKEN_FILE)
    cluster = read(f"{META}CLUSTER_ID")
    return {
        "cluster_id": read("CLUSTER_ID") if cluster is None else cluster,
        "xds_address": _server("XDS_ADDRESS", xds) if xds else None,
        "xds_headers": _headers(environ, XDS_HEADER),
        **_identity(read, istiod),
        "ca_headers": _headers(environ, CA_HEADER),
        "auth_token": token,
    }


def _identity(read: _Reader, istiod: str) -> dict[str, Any]:
    """Who vouches for workloads, and what it needs."""
    source = IdentitySource(read("ZTUNNEL_IDENTITY_SOURCE"))
    if read("FAKE_CA"):
        if source is not IdentitySource.ISTIOD:
            raise ConfigError(f"FAKE_CA=true contradicts ZTUNNEL_IDENTITY_SOURCE={source.value}")
        source = IdentitySource.FAKE
    ca = read("CA_ADDRESS")
    if source is IdentitySource.ISTIOD and ca == "":
        raise ConfigError(
            'CA_ADDRESS="" requires FAKE_CA=true or another ZTUNNEL_IDENTITY_SOURCE: nobody signs'
        )
    files = {variable: read(variable) for variable in _IDENTITY_FILES}
    missing = [variable for variable, path in files.items() if path is None]
    if source is IdentitySource.FILES and missing:
        raise ConfigError(f"ZTUNNEL_IDENTITY_SOURCE=files requires {', '.join(missing)}")
    if source is IdentitySource.SPIFFE and read("SPIFFE_ENDPOINT_SOCKET") is None:
        raise ConfigError("ZTUNNEL_IDENTITY_SOURCE=spiffe requires SPIFFE_ENDPOINT_SOCKET")
    return {
        "identity_source": source,
        "identity_files": None if missing else IdentityFiles(*files.values()),
        "ca_address": _server("CA_ADDRESS", ca or istiod)
        if source is IdentitySource.ISTIOD
        else None,
    }


def _server(variable: str, address: str) -> str:
    try:
        return values.url(address)
    except ValueError as error:
        raise _invalid(variable, address, str(error)) from error


def _headers(environ: Mapping[str, str], prefix: str) -> tuple[tuple[str, Secret], ...]:
    headers = []
    for variable, text in sorted(environ.items()):
        if variable.startswith(prefix):
            try:
                headers.append(values.header(variable[len(prefix) :], text))
            except ValueError as error:
                raise ConfigError(f"invalid {variable}: {error}") from error
    return tuple(headers)


def _metadata_json(environ: Mapping[str, str], warnings: list[str]) -> dict[str, object]:
    parse = BY_VARIABLE[f"{META_JSON}{KEY}"].kind.parse
    found: dict[str, object] = {}
    for variable, text in environ.items():
        if variable.startswith(META_JSON):
            try:
                found[variable[len(META_JSON) :]] = parse(text)
            except ValueError as error:
                warnings.append(f"{variable} is skipped: not JSON: {error}")
    return found


def _binds(read: _Reader, proxy_config: ProxyConfig, warnings: list[str]) -> dict[str, Any]:
    ipv6 = read("IPV6_ENABLED")
    admin, stats = proxy_config.proxy_admin_port, proxy_config.stats_port
    everybody = wildcard(ipv6=ipv6)
    return {
        "has_ipv6_loopback": ipv6 and _has_ipv6_loopback(warnings),
        "admin": Bind(LOCALHOST, ADMIN_PORT if admin is None else admin),
        "stats": Bind(everybody, STATS_PORT if stats is None else stats),
        "readiness": Bind(everybody, READINESS_PORT),
    }


def _has_ipv6_loopback(warnings: list[str]) -> bool:
    try:
        return _IPV6_OFF_ON_LOOPBACK.read_text().strip() != "1"
    except OSError as error:
        warnings.append(f"cannot tell whether lo has IPv6, so assuming that it has: {error}")
        return True


def _dns(proxy_config: ProxyConfig) -> dict[str, Any]:
    """Read from the merged metadata, where the environment has already had its say."""
    capture = proxy_config.metadata.get("DNS_CAPTURE", "true")
    setting = BY_VARIABLE[f"{META}DNS_PROXY_ADDR"]
    address = proxy_config.metadata.get("DNS_PROXY_ADDR", setting.default or "")
    try:
        return {"dns_proxy": capture.lower() == "true", "dns": setting.kind.parse(address)}
    except ValueError as error:
        raise _invalid("DNS_PROXY_ADDR", address, str(error)) from error


def _drain_deadline_s(read: _Reader) -> float:
    explicit, grace = (
        read("CONNECTION_TERMINATION_DEADLINE"),
        read("TERMINATION_GRACE_PERIOD_SECONDS"),
    )
    if explicit is not None:
        return float(explicit)
    if grace is None:
        return _DRAIN_S
    # Time is kept back to end what is left in order, before Kubernetes sends SIGKILL.
    return float(grace - 5 if grace > 10 else max(grace - 1, 1))


def _workers(read: _Reader, proxy_config: ProxyConfig, machine: int) -> int:
    limit = read("ZTUNNEL_RESOURCE_CPU_LIMIT")
    request = read("ZTUNNEL_RESOURCE_CPU_REQUEST") or 0
    allowed = read("ZTUNNEL_CPU_LIMIT")
    asked = read("ZTUNNEL_WORKER_THREADS")
    cpus = next(count for count in (limit, allowed, machine) if count is not None)
    if asked is not None:
        threads = asked(cpus)
    elif proxy_config.concurrency is not None:
        threads = proxy_config.concurrency or cpus
    elif limit is not None:
        threads = max(limit, request)
    else:
        threads = max(math.ceil(cpus * _CPU_SHARE), request, _LEAST_THREADS)
    return max(1, int(threads))


def _check(config: Config) -> None:
    """Refuses settings that contradict each other."""
    if config.mode is ProxyMode.SHARED and config.identity_source in _OF_ONE_WORKLOAD:
        raise ConfigError(
            f"ZTUNNEL_IDENTITY_SOURCE={config.identity_source.value} has the identity of one "
            "workload, so it requires PROXY_MODE=dedicated"
        )
    if config.dns_proxy and config.xds_on_demand:
        raise ConfigError(
            "XDS_ON_DEMAND=true does not work with the DNS proxy; set ISTIO_META_DNS_CAPTURE=false"
        )
    if not config.proxy and not config.dns_proxy:
        raise ConfigError("ENABLE_PROXY=false and ISTIO_META_DNS_CAPTURE off leave nothing to run")
    if config.local_xds is not None and config.local_xds_path is not None:
        raise ConfigError("only one of LOCAL_XDS and LOCAL_XDS_PATH may be set")
    if (config.fake_ca_root_cert is None) != (config.fake_ca_root_key is None):
        raise ConfigError("FAKE_CA_ROOT_CERT and FAKE_CA_ROOT_KEY are only used together")
    if config.fake_ca_root_cert is not None and not config.fake_ca:
        raise ConfigError("FAKE_CA_ROOT_CERT and FAKE_CA_ROOT_KEY require FAKE_CA=true")
