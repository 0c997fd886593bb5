# SPDX-License-Identifier: Apache-2.0
"""What to change in a service, its endpoints, or a reference, so that somebody answers there."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING

from ztunnel_py.decide import change, gateway, names
from ztunnel_py.decide.balance import Mode
from ztunnel_py.decide.change import Change, Edit
from ztunnel_py.decide.standing import Bar, ports_of, standings
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.service import BalanceMode, Service
from ztunnel_py.state.store import ServiceUpdate
from ztunnel_py.state.workload import GatewayAddress, Health, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.decide.standing import Standing
    from ztunnel_py.decide.upstream import Upstreams
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.store import Store

_MOST_GUESSES = 3
"""How many names or workloads are tried that only might be meant."""
_WORKLOAD_KEYS = {"waypoint": "waypoint", "network_gateway": "networkGateway"}


# --- references


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """Who refers to a waypoint or gateway, and in which field."""

    store: Store
    owner: Workload | Service
    field: str
    """`waypoint`, `network_gateway` or `weighted_waypoints`."""
    index: int
    """Of a weighted waypoint."""
    reference: GatewayAddress | None

    @property
    def name(self) -> str:
        """For people."""
        if isinstance(self.owner, Service):
            return f"service {self.owner.key}"
        return f"workload {names.shown(self.owner)}"

    @property
    def noun(self) -> str:
        """What is referred to."""
        return "network gateway" if self.field == "network_gateway" else "waypoint"

    def find(self, store: Store, source: Workload, ip: Ip, mode: Mode) -> Upstreams:
        """The workloads that are referred to."""
        return gateway.find(store, source, self.reference, ip, mode)[0] if self.reference else ()

    def to(self, new: GatewayAddress, words: str) -> Change:
        """Refer to `new` instead."""
        edit = Edit("set", self._path, change.reference(new))
        if self.field != "weighted_waypoints":
            return self._changed(words, edit, new)
        assert isinstance(self.owner, Service)
        path = (*self._path, "destination")
        ways = list(self.owner.weighted_waypoints)
        ways[self.index] = ways[self.index]._replace(destination=new)
        return self._changed(words, edit._replace(path=path), tuple(ways))

    def without(self) -> Change:
        """Refer to none."""
        words = f"remove the {self.noun} of {self.name}"
        edit = Edit("remove", self._path)
        if self.field != "weighted_waypoints":
            return self._changed(words, edit, None)
        assert isinstance(self.owner, Service)
        ways = list(self.owner.weighted_waypoints)
        del ways[self.index]
        return self._changed(words, edit, tuple(ways))

    @property
    def _path(self) -> change.Path:
        if isinstance(self.owner, Workload):
            return (*change.workload_path(self.owner), _WORKLOAD_KEYS[self.field])
        if self.field == "weighted_waypoints":
            return (*change.service_path(self.owner), "weightedWaypoints", self.index)
        return (*change.service_path(self.owner), "waypoint")

    def _changed(self, words: str, edit: Edit, value: object) -> Change:
        fields: dict[str, object] = {self.field: value}
        if isinstance(self.owner, Service):
            service = dataclasses.replace(self.owner, **fields)  # type: ignore[arg-type]
            return Change(words, (edit,), (ServiceUpdate(service),))
        workload = dataclasses.replace(self.owner, **fields)  # type: ignore[arg-type]
        ports = self.store.memberships(workload.uid)
        return Change(words, (edit,), change.in_place(self.store, workload, ports))


def holders(store: Store, owner: Workload | Service, field: str) -> list[Holder]:
    """The references of `owner`: one that may be None, for a service also the weighted ones."""
    if isinstance(owner, Workload):
        return [Holder(store, owner, field, 0, getattr(owner, field))]
    weighted = [
        Holder(store, owner, "weighted_waypoints", i, one.destination)
        for i, one in enumerate(owner.weighted_waypoints)
    ]
    return [*weighted, Holder(store, owner, "waypoint", 0, owner.waypoint)]


def of_reference(
    store: Store, source: Workload, ip: Ip, holder: Holder, mode: Mode
) -> Iterator[Change]:
    """Changes after which `holder` may refer to somebody; a waypoint may also be given up."""
    if holder.find(store, source, ip, mode):
        return
    reference = holder.reference
    if reference is not None:
        yield from _of_target(store, source, holder, reference, mode)
        yield from _renamed(store, holder, reference)
    for new in _in_use(store, holder):
        yield holder.to(new, f"set the {holder.noun} of {holder.name} to {gateway.name(new)}")
    if reference is not None and mode is Mode.WAYPOINT:
        yield holder.without()


def _of_target(
    store: Store, source: Workload, holder: Holder, reference: GatewayAddress, mode: Mode
) -> Iterator[Change]:
    """What the reference means exists, but has no such port, or nobody who answers."""
    target = store.find(reference.destination)
    if not isinstance(target, Service):
        return
    port = reference.hbone_mtls_port
    if port not in target.ports:
        for other in target.ports:
            new = GatewayAddress(reference.destination, other)
            words = f"set the port of the {holder.noun} of {holder.name} to {other}"
            yield holder.to(new, words)
    yield from of_endpoints(store, source, target, port, mode)


def _renamed(store: Store, holder: Holder, reference: GatewayAddress) -> Iterator[Change]:
    """To services whose names are like the one that nobody has."""
    if isinstance(reference.destination, NetworkAddress) or store.find(reference.destination):
        return
    known = {str(service.key): service for service in store.services()}
    near = difflib.get_close_matches(str(reference.destination), list(known), _MOST_GUESSES)
    for name in near:
        if known[name] is holder.owner:
            continue
        service, port = known[name], reference.hbone_mtls_port
        port = port if port in service.ports else next(iter(service.ports), port)
        words = f"set the {holder.noun} of {holder.name} to {name}"
        yield holder.to(GatewayAddress(service.key, port), words)


def _in_use(store: Store, holder: Holder) -> list[GatewayAddress]:
    """What others refer to; gateways only of workloads of the same network."""
    found: list[GatewayAddress | None] = []
    for workload in store.workloads():
        if holder.field != "network_gateway":
            found.append(workload.waypoint)
        elif isinstance(holder.owner, Workload) and workload.network == holder.owner.network:
            found.append(workload.network_gateway)
    if holder.field != "network_gateway":
        found += [service.waypoint for service in store.services()]
    kept = dict.fromkeys(one for one in found if one is not None and one != holder.reference)
    return list(kept)[:_MOST_GUESSES]


# --- endpoints


def of_endpoints(
    store: Store, source: Workload, service: Service, port: int, mode: Mode
) -> list[Change]:
    """Changes after which `service` may have somebody who answers at `port`."""
    found = standings(store, source, service, port, mode)
    if mode is Mode.STANDARD and port not in service.ports:
        return [_with_port(service, port)]
    changes = [one for standing in found if (one := _of_bar(store, service, port, standing))]
    if not found:
        changes = _staffed(store, service, port)
    return list({one.words: one for one in changes}.values())


def _with_port(service: Service, port: int) -> Change:
    target = next((target for target in service.ports.values() if target), port)
    has = ports_of(service)
    words = f"add port {port} to service {service.key}, or call one that it has: {has}"
    new = {**service.ports, port: target}
    return change.of_service(service, words, ("ports", port), target, ports=new)


def _of_bar(store: Store, service: Service, port: int, standing: Standing) -> Change | None:
    workload = standing.workload
    if workload is None:
        return None
    match standing.bar:
        case Bar.UNHEALTHY:
            return _healed(store, service, standing, workload)
        case Bar.NO_CAPACITY:
            words = f"give {standing.name} a capacity: 1"
            return change.of_workload(store, workload, words, "capacity", 1, capacity=1)
        case Bar.NO_TARGET:
            ports = {**standing.endpoint.ports, port: port}
            words = f"say at which port {standing.name} serves port {port}: {port}"
            return change.serve(store, workload, service.key, ports, words)
        case Bar.NOT_PREFERRED:
            return _preferring(service, standing)
        case Bar.NO_GATEWAY:
            (holder,) = holders(store, workload, "network_gateway")
            for new in _in_use(store, holder):
                name = gateway.name(new)
                return holder.to(new, f"set the {holder.noun} of {holder.name} to {name}")
    return None


def _healed(store: Store, service: Service, standing: Standing, workload: Workload) -> Change:
    """One that is healthy itself is only listed as unhealthy by the service."""
    words = f"heal {standing.name}: status Healthy"
    if workload.health is Health.HEALTHY:
        ports = standing.endpoint.ports
        words = f"name service {service.key} in healthy {standing.name} itself"
        return change.serve(store, workload, service.key, ports, words)
    return change.of_workload(store, workload, words, "status", "Healthy", health=Health.HEALTHY)


def _preferring(service: Service, standing: Standing) -> Change:
    assert service.load_balancer is not None  # else nothing is preferred
    balancer = service.load_balancer._replace(mode=BalanceMode.FAILOVER)
    required = standing.detail.partition(" ")[0]
    words = f"let service {service.key} prefer, not require, the same {required}: mode Failover"
    path = ("loadBalancer", "mode")
    return change.of_service(service, words, path, "Failover", load_balancer=balancer)


def _staffed(store: Store, service: Service, port: int) -> list[Change]:
    """With workloads of its namespace that are called as it is."""
    name = service.name
    target = service.ports.get(port) or port
    return [
        change.serve(
            store,
            workload,
            service.key,
            {port: target},
            f"make {names.shown(workload)} an endpoint of service {service.key}",
        )
        for workload in store.workloads()
        if workload.namespace == service.namespace
        and (
            name in (workload.canonical_name, workload.workload_name)
            or workload.name == name
            or workload.name.startswith(f"{name}-")
        )
    ][:_MOST_GUESSES]
