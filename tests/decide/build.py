# SPDX-License-Identifier: Apache-2.0
"""Short ways to decide for captured connections in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.state.build import at, ip, pod
from ztunnel_py.decide import outbound
from ztunnel_py.decide.key import OutboundKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.service import (
    BalanceMode,
    LoadBalancer,
)
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import (
    GatewayAddress,
    NamespacedHostname,
)

if TYPE_CHECKING:
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Update
    from ztunnel_py.state.workload import (
        Workload,
        WorkloadInfo,
    )


CLIENT = pod("client", "10.0.0.1", "2001:db8::1", workload_name="client", node="here")
WEB = "default/web.test"
SERVES = {WEB: {80: 8080}}
VIP = "10.1.0.1"
PASSTHROUGH = LoadBalancer(mode=BalanceMode.PASSTHROUGH)


def decide(
    *updates: Update,
    to: str,
    client: Workload | WorkloadInfo = CLIENT.workload,
    src: str = "10.0.0.1",
) -> Verdict:
    store = Store()
    store.apply([CLIENT, *updates])
    return outbound.decide(store, Settings(), OutboundKey("w", ip(src), SockAddr.parse(to)), client)


def reached(verdict: Verdict) -> list[tuple[str, str]]:
    """Next hop and authority of each hop."""
    assert verdict.action is Action.FORWARD, verdict
    return sorted((str(hop.address), hop.authority) for hop in verdict.hops)


def refusal(verdict: Verdict) -> str:
    assert verdict.action is Action.DENY
    return verdict.reason.describe(verdict.detail)


def gateway(destination: str, port: int = 15008) -> GatewayAddress:
    namespace, _, rest = destination.partition("/")
    if rest[0].isdigit() or ":" in rest:
        return GatewayAddress(at(rest, namespace), port)
    return GatewayAddress(NamespacedHostname(namespace, rest), port)
