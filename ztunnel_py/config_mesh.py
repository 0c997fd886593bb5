# SPDX-License-Identifier: Apache-2.0
"""The mesh file and `PROXY_CONFIG`: settings that Istio gives to every proxy as YAML.

`./etc/istio/config/mesh` is read first, `PROXY_CONFIG` overrides it field by field, and
`ISTIO_META_*` variables override the metadata of both. Source: spec identity-ops, section C.3.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ztunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MESH_FILE = "etc/istio/config/mesh"
VARIABLE = "PROXY_CONFIG"
META = "ISTIO_META_"
_U16_MAX = 65_535

T = TypeVar("T", int, str)


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The part of Istio's ProxyConfig that a node proxy uses; None where nothing is said."""

    discovery_address: str | None = None
    proxy_admin_port: int | None = None
    stats_port: int | None = None
    concurrency: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def overridden(self, by: ProxyConfig) -> ProxyConfig:
        """This one with what `by` says; metadata key by key."""
        return ProxyConfig(
            _first(by.discovery_address, self.discovery_address),
            _first(by.proxy_admin_port, self.proxy_admin_port),
            _first(by.stats_port, self.stats_port),
            _first(by.concurrency, self.concurrency),
            {**self.metadata, **by.metadata},
        )


def load_proxy_config(environ: Mapping[str, str], cwd: Path) -> ProxyConfig:
    """What mesh file, `PROXY_CONFIG` and `ISTIO_META_*` say together; metadata without prefix.

    Raises:
        ConfigError: the file or the variable cannot be read.
    """
    merged = _mesh_file(cwd / MESH_FILE).overridden(_variable(environ.get(VARIABLE, "")))
    stripped = {key.removeprefix(META): value for key, value in merged.metadata.items()}
    direct = {key[len(META) :]: text for key, text in environ.items() if key.startswith(META)}
    return dataclasses.replace(merged, metadata={**stripped, **direct})


def _mesh_file(path: Path) -> ProxyConfig:
    try:
        document = _parse(path.read_text(encoding="utf-8"))
        if document is None:
            return ProxyConfig()
        if not isinstance(document, dict):
            raise ValueError("expected a mapping")
        return _proxy_config(document.get("defaultConfig"))
    except FileNotFoundError:
        return ProxyConfig()
    except (OSError, ValueError) as error:
        raise ConfigError(f"failed parsing mesh config file {path}: {error}") from error


def _variable(text: str) -> ProxyConfig:
    if not text:
        return ProxyConfig()
    try:
        return _proxy_config(_parse(text))
    except ValueError as error:
        raise ConfigError(f"failed parsing proxy config env: {VARIABLE}: {error}") from error


def _parse(text: str) -> object:
    from ztunnel_py import yaml_tree  # loads PyYAML, which most starts do not need here

    return yaml_tree.parse(text)


def _proxy_config(value: object) -> ProxyConfig:
    if value is None:
        return ProxyConfig()
    if not isinstance(value, dict):
        raise ValueError("expected a mapping")
    if "proxyMetadata" not in value:
        raise ValueError("missing key proxyMetadata (ztunnel requires it; it may be {})")
    metadata = value["proxyMetadata"]
    if not isinstance(metadata, dict) or not all(
        isinstance(part, str) for pair in metadata.items() for part in pair
    ):
        raise ValueError("proxyMetadata: expected a mapping of strings to strings")
    address = value.get("discoveryAddress")
    if address is not None and not isinstance(address, str):
        raise ValueError("discoveryAddress: expected a string")
    return ProxyConfig(
        discovery_address=address,
        proxy_admin_port=_u16(value, "proxyAdminPort"),
        stats_port=_u16(value, "statsPort"),
        concurrency=_u16(value, "concurrency"),
        metadata=metadata,
    )


def _u16(mapping: Mapping[str, object], key: str) -> int | None:
    value = mapping.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _U16_MAX:
        raise ValueError(f"{key}: expected a number from 0 to {_U16_MAX}")
    return value


def _first(one: T | None, other: T | None) -> T | None:
    return other if one is None else one
