# SPDX-License-Identifier: Apache-2.0
"""What the environment says about the redirection of all pods of a node.

Source: spec redirection, section 9.10.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py.redirection.plan import PROBE_V4, PROBE_V6, Options, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKENDS = ("auto", "iptables", "legacy", "nft")
"""Names of the programs that change the rules, see `choice`."""
_PROBE_V4, _PROBE_V6 = "HOST_PROBE_SNAT_IP", "HOST_PROBE_SNAT_IPV6"


def has_ipv6() -> bool:
    """The kernel knows IPv6."""
    return Path("/proc/sys/net/ipv6").exists()


def node_options(environ: Mapping[str, str]) -> Options:
    """Options of a pod that asks for nothing.

    Raises:
        PlanError: an address of probes is none.
    """
    try:
        return Options(
            has_ipv6=has_ipv6(),
            probe_v4=ipaddress.IPv4Address(environ.get(_PROBE_V4) or PROBE_V4),
            probe_v6=ipaddress.IPv6Address(environ.get(_PROBE_V6) or PROBE_V6),
        )
    except ipaddress.AddressValueError as error:
        raise PlanError(f"{_PROBE_V4} or {_PROBE_V6}: {error}") from error
