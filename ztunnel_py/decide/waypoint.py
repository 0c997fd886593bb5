# SPDX-License-Identifier: Apache-2.0
"""Waypoints: which one a connection must traverse, and where it is.

Source: spec state, section 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide import gateway
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.refusal import Refused
from ztunnel_py.errors import Reason
from ztunnel_py.state.workload import Workload

if TYPE_CHECKING:
    from ztunnel_py.decide.upstream import Upstreams
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.service import Service
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import GatewayAddress


def of_service(service: Service) -> list[tuple[GatewayAddress, int]]:
    """The waypoints of `service` with their weights; empty if it has none.

    The weighted ones, or if all of their weights are 0 the single one.
    """
    weighted = [(w.destination, w.weight) for w in service.weighted_waypoints if w.weight > 0]
    if weighted or service.waypoint is None:
        return weighted
    return [(service.waypoint, 1)]


def resolve(
    store: Store, source: Workload, reference: GatewayAddress, original: Ip
) -> tuple[Upstreams, Ip]:
    """See `gateway.find`.

    Raises:
        Refused: it resolves to nothing.
    """
    found, fits = gateway.find(store, source, reference, original, Mode.WAYPOINT)
    if not found:
        raise Refused(Reason.UNKNOWN_WAYPOINT, f"waypoint {gateway.name(reference)} not found")
    return found, fits


def is_source(store: Store, workload: Workload, source: Workload, ip: Ip) -> bool:
    """Whether a connection from `source` at `ip` comes from the waypoint of `workload`."""
    if workload.waypoint is None:
        return False
    target = store.find(workload.waypoint.destination)
    if isinstance(target, Workload):
        return _is(target, source, ip)
    if target is None:
        return False
    members = (store.workload(endpoint.workload_uid) for endpoint in store.endpoints(target))
    return any(member is not None and _is(member, source, ip) for member in members)


def serves(store: Store, reference: GatewayAddress, local: Workload, ip: Ip) -> bool:
    """Whether the workload `local`, dialled at `ip`, is the waypoint that `reference` names."""
    target = store.find(reference.destination)
    if isinstance(target, Workload):
        return ip in target.ips
    return target is not None and store.endpoint(target, local.uid) is not None


def _is(waypoint: Workload, source: Workload, ip: Ip) -> bool:
    return waypoint.identity == source.identity and ip in waypoint.ips
