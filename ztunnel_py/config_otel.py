# SPDX-License-Identifier: Apache-2.0
"""Which signals are exported to OpenTelemetry, by its own variables.

Everything else that they say (headers, timeouts, certificates, resource attributes) is read by its
SDK. Source: the OpenTelemetry specification, "Environment Variable Specification" and "OTLP
Exporter Configuration".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "OTEL_"
TRACES, LOGS = "TRACES", "LOGS"
_PROTOCOL = "http/protobuf"


def signals(environ: Mapping[str, str]) -> frozenset[str]:
    """Of `TRACES` and `LOGS` those with an endpoint, and those that are asked for by name.

    Raises:
        ConfigError: they are to be sent in a way that this program does not know.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return frozenset()
    return frozenset(one for one in (TRACES, LOGS) if _is_wanted(environ, one))


def _is_wanted(environ: Mapping[str, str], signal: str) -> bool:
    exporter = f"{PREFIX}{signal}_EXPORTER"
    chosen = environ.get(exporter, "").strip().lower()
    if chosen not in ("", "otlp", "none"):
        raise ConfigError(f"invalid value {exporter}={chosen!r}: expected otlp or none")
    endpoint_variable, endpoint = _of(environ, signal, "ENDPOINT")
    if chosen == "none" or not (chosen or endpoint):
        return False
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"invalid value {endpoint_variable}={endpoint!r}: expected a URL, http://host:4318"
        )
    protocol_variable, protocol = _of(environ, signal, "PROTOCOL")
    if protocol not in ("", _PROTOCOL):
        raise ConfigError(f"invalid value {protocol_variable}={protocol!r}: expected {_PROTOCOL}")
    return True


def _of(environ: Mapping[str, str], signal: str, what: str) -> tuple[str, str]:
    """The variable for one signal, or else for all, and its text; empty is unset."""
    names = f"{PREFIX}EXPORTER_OTLP_{signal}_{what}", f"{PREFIX}EXPORTER_OTLP_{what}"
    found = ((name, environ.get(name, "").strip()) for name in names)
    return next((one for one in found if one[1]), (names[-1], ""))
