# SPDX-License-Identifier: Apache-2.0
"""Which endpoints of a service a client may use, and at which port.

Source: spec state, section 4.3. Nothing is drawn here: all equally good endpoints are returned,
and the engine draws one per connection by capacity.
"""

from __future__ import annotations

import enum
import operator
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.state.service import BalanceMode, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ztunnel_py.state.service import Endpoint, LoadBalancer, Service
    from ztunnel_py.state.store import Members
    from ztunnel_py.state.workload import Workload


PARTS: dict[Scope, Callable[[Workload], object]] = {
    Scope.REGION: operator.attrgetter("locality.region"),
    Scope.ZONE: operator.attrgetter("locality.zone"),
    Scope.SUBZONE: operator.attrgetter("locality.subzone"),
    Scope.NODE: operator.attrgetter("node"),
    Scope.CLUSTER: operator.attrgetter("cluster_id"),
    Scope.NETWORK: operator.attrgetter("network"),
}
"""What a preference compares; empty parts are equal."""


class Mode(enum.Enum):
    """On whose behalf an endpoint is looked for."""

    STANDARD = "standard"
    """A client's, or for a gateway: the service must have the port."""
    WAYPOINT = "waypoint"
    """For a waypoint: the port need not be the service's if the application tunnels."""


class Candidate(NamedTuple):
    """An endpoint that may be used."""

    workload: Workload
    port: int


def reads(source: Workload, service: Service) -> tuple[object, ...]:
    """What choosing among the endpoints of `service` reads of `source`, and nothing else."""
    balancer = service.load_balancer
    if balancer is None or balancer.mode is BalanceMode.STANDARD:
        return (source.network,)
    return (source.network, *(PARTS[scope](source) for scope in balancer.routing_preferences))


def candidates(members: Members, source: Workload, port: int, mode: Mode) -> list[Candidate]:
    """The best-ranked of `members` for `source`; those of capacity 0 take no part.

    Cost: linear in the number of endpoints.
    """
    service = members.service
    if mode is Mode.STANDARD and port not in service.ports:
        return []
    eligible = list(_eligible(members, source, port, mode))
    balancer = service.load_balancer
    if balancer is not None and balancer.mode is not BalanceMode.STANDARD:
        eligible = _preferred(source, balancer, eligible)
    found = []
    for endpoint, workload in eligible:
        target = target_port(service, endpoint, workload, port)
        if target is not None and workload.capacity > 0:
            found.append(Candidate(workload, target))
    return found


def _eligible(
    members: Members, source: Workload, port: int, mode: Mode
) -> Iterator[tuple[Endpoint, Workload]]:
    target = members.service.ports.get(port)
    for endpoint, workload in members.pairs:
        if not is_reachable(source, workload):
            continue
        if mode is Mode.STANDARD and not target and port not in endpoint.ports:
            continue
        if mode is Mode.WAYPOINT and target is None and workload.application_tunnel is None:
            continue
        yield endpoint, workload


def is_reachable(source: Workload, workload: Workload) -> bool:
    """Without any address only a gateway leads there, and only from another network."""
    if workload.ips or workload.hostname:
        return True
    return workload.network != source.network and workload.network_gateway is not None


def _preferred(
    source: Workload, balancer: LoadBalancer, eligible: list[tuple[Endpoint, Workload]]
) -> list[tuple[Endpoint, Workload]]:
    """Those of the highest rank; in STRICT mode only what matches every preference."""
    scopes = balancer.routing_preferences
    wanted = [(PARTS[scope], PARTS[scope](source)) for scope in scopes]
    is_network_first = scopes[:1] == (Scope.NETWORK,)
    ranked = []
    for endpoint, workload in eligible:
        matched, bonus = rank(workload, wanted, is_network_first)
        if balancer.mode is BalanceMode.STRICT and matched < len(wanted):
            continue
        ranked.append((matched + bonus, endpoint, workload))
    best = max((rank for rank, _, _ in ranked), default=0)
    return [(endpoint, workload) for rank, endpoint, workload in ranked if rank == best]


def rank(
    workload: Workload,
    wanted: list[tuple[Callable[[Workload], object], object]],
    is_network_first: bool,
) -> tuple[int, int]:
    """How many leading preferences match, and a bonus that puts the own network first.

    With NETWORK as the first preference, a mismatch of it does not end the comparison: endpoints
    of other networks still rank by locality among themselves, below all of the own network.
    """
    matched = bonus = 0
    network = PARTS[Scope.NETWORK]
    for part, value in wanted:
        is_network = is_network_first and part is network
        if part(workload) == value:
            matched += 1
            if is_network:
                bonus = len(wanted) - 1
        elif not is_network:
            break
    return matched, bonus


def target_port(service: Service, endpoint: Endpoint, workload: Workload, port: int) -> int | None:
    """The endpoint's own mapping, the service's, or for a tunnelling application none at all.

    A mapping to 0 says that the port is not known: no endpoint is dialled at port 0.
    """
    if target := endpoint.ports.get(port) or service.ports.get(port):
        return target
    tunnel = workload.application_tunnel
    return port if tunnel is not None and tunnel.port is not None else None
