# SPDX-License-Identifier: Apache-2.0
"""References to waypoints and network gateways: which workloads they lead to.

Source: spec state, sections 5.4 and 5.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide import upstream
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.refusal import Refused
from ztunnel_py.decide.upstream import Upstream
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.service import Service

if TYPE_CHECKING:
    from ztunnel_py.decide.upstream import Upstreams
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import GatewayAddress, Workload


def name(reference: GatewayAddress) -> str:
    """How messages call it."""
    destination = reference.destination
    return str(destination) if isinstance(destination, NetworkAddress) else destination.hostname


def find(
    store: Store, source: Workload, reference: GatewayAddress, original: Ip, mode: Mode
) -> tuple[Upstreams, Ip]:
    """The workloads behind `reference`, and the address that their own is chosen to fit.

    A reference by address pins the family; one by hostname follows the caller's `original`.
    """
    destination, port = reference.destination, reference.hbone_mtls_port
    if isinstance(destination, NetworkAddress):
        found = upstream.find(store, source, destination, port, mode)
        return found, destination.ip
    target = store.find(destination)
    if isinstance(target, Service):
        return upstream.of_service(store, source, target, port, mode), original
    return (() if target is None else (Upstream(target, port),)), original


def resolve(
    store: Store, source: Workload, reference: GatewayAddress, original: Ip
) -> tuple[Upstreams, Ip]:
    """The network gateways behind `reference`; see `find`.

    Raises:
        Refused: it resolves to nothing.
    """
    found, fits = find(store, source, reference, original, Mode.STANDARD)
    if not found:
        raise Refused(Reason.UNKNOWN_GATEWAY, f"network gateway {name(reference)} not found")
    return found, fits
