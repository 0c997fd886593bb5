# SPDX-License-Identifier: Apache-2.0
"""The part of the configuration that decisions read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """What a decision needs to know besides the state."""

    network: str = ""
    """The network of this node (`NETWORK`)."""
    inbound_port: int = 15008
    """Where workloads accept HBONE."""
    illegal_ports: frozenset[int] = frozenset({15001, 15006, 15008})
    """The proxy's own listeners, never to be reached through the proxy."""
    response_baggage: bool = True
    """Read baggage of requests and answer with the workload's own (`ENABLE_RESPONSE_BAGGAGE`)."""
    localhost_app_tunnel: bool = True
    """Dial applications that take PROXY headers on loopback (`LOCALHOST_APP_TUNNEL`)."""
    keep_source: bool = True
    """Dial applications from the client's address, where the engine can."""
    policy_log_level: str = "debug"
    """Level of the lines about matched policies (`AUTHZ_POLICY_INFO_LOGGING` makes it info)."""
