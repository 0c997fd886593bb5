# SPDX-License-Identifier: Apache-2.0
"""The standing of each endpoint of a service: whether a client may use it, or what bars it.

Goes through the same tests as `balance.candidates`, but for one endpoint at a time.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.decide import balance, names
from ztunnel_py.decide.balance import PARTS, Mode
from ztunnel_py.state.service import BalanceMode, Scope

if TYPE_CHECKING:
    from ztunnel_py.state.service import Endpoint, Service
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload


class Bar(enum.Enum):
    """What keeps a client from an endpoint."""

    PORT = "the service has no such port"
    UNKNOWN = "nobody knows its workload"
    UNHEALTHY = "unhealthy"
    NO_ADDRESS = "it has no address"
    NO_GATEWAY = "it is on another network and has neither an address nor a gateway"
    NO_TARGET = "nobody knows its port"
    NOT_PREFERRED = "it does not match what the service requires"
    OUTRANKED = "others are nearer"
    NO_CAPACITY = "its capacity is 0"


class Standing(NamedTuple):
    """One endpoint, as one client sees it."""

    endpoint: Endpoint
    workload: Workload | None
    target: int | None
    """Its port; None if nobody knows it."""
    bar: Bar | None
    """None if it may be used."""
    detail: str = ""
    """Completes the text of the bar, or says how the endpoint ranks."""

    @property
    def name(self) -> str:
        """As people call it."""
        return names.shown(self.workload) if self.workload else self.endpoint.workload_uid

    @property
    def text(self) -> str:
        """For people."""
        if self.bar is not None:
            return f"{self.name}: {self.bar.value}{self.detail and f' ({self.detail})'}"
        return f"{self.name}, port {self.target}{self.detail and f' ({self.detail})'}"


def standings(
    store: Store, source: Workload, service: Service, port: int, mode: Mode
) -> list[Standing]:
    """All endpoints of `service`, each with its first bar, in the order of the store."""
    endpoints = store.all_endpoints(service)
    found = [_alone(store, source, service, port, mode, one) for one in endpoints]
    return _ranked(source, service, found)


def _alone(
    store: Store, source: Workload, service: Service, port: int, mode: Mode, endpoint: Endpoint
) -> Standing:
    """Without regard to the others."""
    workload = store.workload(endpoint.workload_uid)
    if workload is None:
        return Standing(endpoint, None, None, Bar.UNKNOWN)
    target = balance.target_port(service, endpoint, workload, port)

    def barred(bar: Bar, detail: str = "") -> Standing:
        return Standing(endpoint, workload, target, bar, detail)

    if mode is Mode.STANDARD and port not in service.ports:
        return barred(Bar.PORT, f"{port}; it has {ports_of(service)}")
    if not service.keeps(endpoint):
        return barred(Bar.UNHEALTHY)
    if not balance.is_reachable(source, workload):
        if workload.network != source.network:
            return barred(Bar.NO_GATEWAY, f"network {workload.network or '(default)'}")
        return barred(Bar.NO_ADDRESS)
    if mode is Mode.WAYPOINT and port not in service.ports and workload.application_tunnel is None:
        return barred(Bar.PORT, f"{port}; it has {ports_of(service)}")
    if mode is Mode.STANDARD and not service.ports[port] and port not in endpoint.ports:
        return barred(Bar.NO_TARGET, f"{port} is a named port that it does not have")
    where = "" if workload.network == source.network else f"on network {workload.network}"
    return Standing(endpoint, workload, target, None, where)


def _ranked(source: Workload, service: Service, found: list[Standing]) -> list[Standing]:
    """With the preferences of the service, then what is left to be known: port and capacity."""
    balancer = service.load_balancer
    ranks: dict[int, int] = {}
    scopes: tuple[Scope, ...] = ()
    if balancer is not None and balancer.mode is not BalanceMode.STANDARD:
        scopes = balancer.routing_preferences
        wanted = [(PARTS[scope], PARTS[scope](source)) for scope in scopes]
        is_network_first = scopes[:1] == (Scope.NETWORK,)
        for i, one in enumerate(found):
            if one.bar is not None or one.workload is None:
                continue
            matched, bonus = balance.rank(one.workload, wanted, is_network_first)
            if balancer.mode is BalanceMode.STRICT and matched < len(wanted):
                detail = _unmatched(source, one.workload, scopes)
                found[i] = one._replace(bar=Bar.NOT_PREFERRED, detail=detail)
            else:
                ranks[i] = matched + bonus
    best = max(ranks.values(), default=0)
    shown = ", ".join(scope.value for scope in scopes)
    for i, one in enumerate(found):
        if one.bar is not None or one.workload is None:
            continue
        if i in ranks and ranks[i] < best:
            detail = f"rank {ranks[i]} of {best} by {shown}"
            found[i] = one._replace(bar=Bar.OUTRANKED, detail=detail)
        elif one.target is None:
            found[i] = one._replace(bar=Bar.NO_TARGET)
        elif one.workload.capacity == 0:
            found[i] = one._replace(bar=Bar.NO_CAPACITY, detail="")
        elif scopes:
            rank = f"rank {ranks[i]} by {shown}"
            found[i] = one._replace(detail=f"{one.detail}, {rank}" if one.detail else rank)
    return found


def _unmatched(source: Workload, workload: Workload, scopes: tuple[Scope, ...]) -> str:
    """The first preference that `workload` does not match."""
    for scope in scopes:
        wanted, was = PARTS[scope](source), PARTS[scope](workload)
        if wanted != was:
            return f"{scope.value} is {wanted or '(none)'}, was {was or '(none)'}"
    return ""


def ports_of(service: Service) -> str:
    """The ports of `service`, for people."""
    return ", ".join(str(port) for port in service.ports) or "none"
