# SPDX-License-Identifier: Apache-2.0
"""What is known of the mesh: indexes, lookups, epochs and notification of changes.

Changed on one thread only, by `apply`, which is atomic for everybody on that thread. Objects are
immutable: an update replaces them, and who holds an old one keeps it. No I/O and no clock.

Endpoints are facts of their own, taken from workloads and kept apart from services: whether a
service is known and which endpoints are healthy enough for it is asked when it is looked at. So
the order of arrival does not matter, and a service that goes and comes back finds its endpoints.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.policy import PolicyScope
from ztunnel_py.state.service import Endpoint
from ztunnel_py.state.workload import NetworkMode

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

    from ztunnel_py.state.policy import Policy
    from ztunnel_py.state.service import CidrVip, Ports, Service
    from ztunnel_py.state.workload import NamespacedHostname, Workload, WorkloadInfo

    Memberships = Mapping[NamespacedHostname, Ports]

DERIVED_MAX = 256
"""What may be kept with the members of a service: a few hundred clients of one node use it."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class Change(enum.Flag):
    """What a batch of updates touched."""

    NONE = 0
    DISCOVERY = enum.auto()
    POLICY = enum.auto()
    """Something that an authorization reads; open connections may have lost their permission."""


_BOTH = Change.DISCOVERY | Change.POLICY


class WorkloadUpdate(NamedTuple):
    """A workload is new or has changed."""

    workload: Workload
    ports: Memberships
    """The services it is an endpoint of, and its own port mapping in each."""


class WorkloadRemoval(NamedTuple):
    """The workload of this uid is gone."""

    uid: str


class ServiceUpdate(NamedTuple):
    """A service is new or has changed."""

    service: Service
    endpoints: tuple[Endpoint, ...] = ()
    """Endpoints written with the service; usually they come from the workloads."""


class ServiceRemoval(NamedTuple):
    """The service of this key is gone."""

    key: NamespacedHostname


class PolicyUpdate(NamedTuple):
    """A policy is new or has changed."""

    key: str
    policy: Policy


class PolicyRemoval(NamedTuple):
    """The policy of this key is gone."""

    key: str


Update = (
    WorkloadUpdate | WorkloadRemoval | ServiceUpdate | ServiceRemoval | PolicyUpdate | PolicyRemoval
)


class Members:
    """The endpoints that a service keeps, with their workloads; none of them ever changes.

    A change of the service, of one of its endpoints or of a workload behind one makes new members,
    and nothing else does. So what follows from them may be kept with them, and goes with them; what
    followed from those before them can still be looked up, since most of it will be the same.
    """

    __slots__ = ("_derived", "_former", "pairs", "service")

    def __init__(
        self,
        service: Service,
        pairs: tuple[tuple[Endpoint, Workload], ...],
        former: Members | None = None,
    ) -> None:
        self.service = service
        self.pairs = pairs
        self._derived: dict[Hashable, object] = {}
        self._former = {} if former is None else former._derived

    def former(self, key: Hashable) -> object | None:
        """What was kept under `key` with the members before these; asked for once."""
        return self._former.pop(key, None)

    def derived(self, key: Hashable) -> object | None:
        """What was kept under `key`: whatever else it follows from."""
        return self._derived.get(key)

    def keep(self, key: Hashable, value: object) -> None:
        """Keeps what follows from these members and `key`; the oldest goes where it is too much."""
        if len(self._derived) >= DERIVED_MAX:
            del self._derived[next(iter(self._derived))]
        self._derived[key] = value


class Store:
    """The mesh as one node knows it."""

    def __init__(self, local_node: str = "") -> None:
        """An empty store; `local_node` names this node, empty takes every node for local."""
        self._local_node = local_node
        self._discovery_epoch = 0
        self._policy_epoch = 0
        self._policies_version = 0
        self._local_version = 0
        self._listeners: list[Callable[[Change], None]] = []
        self._workloads: dict[str, tuple[Workload, Memberships]] = {}
        self._by_address: dict[NetworkAddress, tuple[Workload, ...]] = {}
        self._by_identity: dict[tuple[str, str], dict[str, Workload]] = {}
        self._endpoints: dict[NamespacedHostname, dict[str, Endpoint]] = {}
        self._written: dict[str, set[NamespacedHostname]] = {}
        self._members: dict[NamespacedHostname, Members] = {}
        self._former: dict[NamespacedHostname, Members] = {}
        self._services: dict[NamespacedHostname, Service] = {}
        self._by_host: dict[str, tuple[Service, ...]] = {}
        self._by_vip: dict[NetworkAddress, tuple[Service, ...]] = {}
        self._by_cidr: dict[CidrVip, tuple[Service, ...]] = {}
        self._policies: dict[str, Policy] = {}
        self._policies_by_namespace: dict[str, dict[str, Policy]] = {}

    def copy(self) -> Store:
        """The same mesh, for trying out changes of it; nobody listens to it.

        Cost: linear in the number of workloads and services, whose objects are shared.
        """
        twin = Store(self._local_node)
        twin._discovery_epoch, twin._policy_epoch = self._discovery_epoch, self._policy_epoch
        twin._policies_version = self._policies_version
        twin._local_version = self._local_version
        twin._workloads = dict(self._workloads)
        twin._by_address = dict(self._by_address)
        twin._by_identity = {key: dict(found) for key, found in self._by_identity.items()}
        twin._endpoints = {key: dict(found) for key, found in self._endpoints.items()}
        twin._written = {uid: set(found) for uid, found in self._written.items()}
        twin._services = dict(self._services)
        twin._by_host = dict(self._by_host)
        twin._by_vip = dict(self._by_vip)
        twin._by_cidr = dict(self._by_cidr)
        twin._policies = dict(self._policies)
        twin._policies_by_namespace = {
            namespace: dict(found) for namespace, found in self._policies_by_namespace.items()
        }
        return twin

    # --- change

    @property
    def discovery_epoch(self) -> int:
        """Moves with every change of workloads or services."""
        return self._discovery_epoch

    @property
    def policy_epoch(self) -> int:
        """Moves with every change of what an authorization reads."""
        return self._policy_epoch

    @property
    def policies_version(self) -> int:
        """Moves with every change of a policy, not with what else an authorization reads."""
        return self._policies_version

    @property
    def local_version(self) -> int:
        """Moves whenever a workload of this node comes, changes or goes."""
        return self._local_version

    def subscribe(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Have `listener` called after each batch that changed something; returns the undo."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def apply(self, updates: Iterable[Update]) -> Change:
        """Apply a batch in order, move the epochs once, then tell the listeners."""
        change = Change.NONE
        try:
            for update in updates:
                one = self._apply_one(update)
                if one is not change:
                    change |= one
        except BaseException:
            self._changed(_BOTH)  # anything may have
            raise
        self._changed(change)
        return change

    def _changed(self, change: Change) -> None:
        if Change.DISCOVERY in change:
            self._discovery_epoch += 1
        if Change.POLICY in change:
            self._policy_epoch += 1
        if change:
            for listener in tuple(self._listeners):
                listener(change)

    def _apply_one(self, update: Update) -> Change:
        match update:
            case WorkloadUpdate(workload, ports):
                return self._put_workload(workload, ports)
            case WorkloadRemoval(uid):
                gone = self._drop_workload(uid)
                return self._change_of(gone, None) if gone is not None else Change.NONE
            case ServiceUpdate(service, endpoints):
                self._put_service(service, endpoints)
                return Change.DISCOVERY
            case ServiceRemoval(key):
                return Change.DISCOVERY if self._drop_service(key) else Change.NONE
            case PolicyUpdate(key, policy):
                self._drop_policy(key)
                self._policies_version += 1
                self._policies[key] = policy
                if (bucket := _bucket(policy)) is not None:
                    self._policies_by_namespace.setdefault(bucket, {})[key] = policy
                return Change.POLICY
            case PolicyRemoval(key):
                return Change.POLICY if self._drop_policy(key) else Change.NONE

    def _put_workload(self, new: Workload, ports: Memberships) -> Change:
        uid = new.uid
        old = self._drop_workload(uid) if uid in self._workloads else None
        self._workloads[uid] = new, ports
        for address in _addresses(new):
            found = self._by_address.setdefault(address, only := (new,))
            if found is not only:
                self._by_address[address] = _ranked(found, new)
        if is_local := self._is_local(new):
            key = (new.namespace, new.service_account)
            self._by_identity.setdefault(key, {})[uid] = new
            self._local_version += 1
        for service, mapping in ports.items():
            self._endpoints.setdefault(service, {})[uid] = Endpoint(uid, mapping, new.health)
        self._new_members(ports, uid)
        if old is None and not is_local:
            return Change.DISCOVERY
        return self._change_of(old, new)

    def _change_of(self, old: Workload | None, new: Workload | None) -> Change:
        """What a workload's replacement means; coming and going is a change of rights, too."""
        return _BOTH if self._rights(old) != self._rights(new) else Change.DISCOVERY

    def _rights(self, workload: Workload | None) -> tuple[object, ...]:
        """What authorizations of connections to a workload of this node depend on."""
        if workload is None or not self._is_local(workload):
            return ()
        w = workload
        return (w.name, w.namespace, w.service_account, w.trust_domain, w.authorization_policies)

    def _drop_workload(self, uid: str) -> Workload | None:
        found = self._workloads.pop(uid, None)
        if found is None:
            return None
        old, memberships = found
        for address in _addresses(old):
            rest = tuple(w for w in self._by_address.get(address, ()) if w.uid != uid)
            _set_or_drop(self._by_address, address, rest)
        if self._is_local(old):
            key = (old.namespace, old.service_account)
            self._by_identity[key].pop(uid)
            _set_or_drop(self._by_identity, key, self._by_identity[key])
            self._local_version += 1
        for service in memberships:
            self._endpoints[service].pop(uid, None)
            _set_or_drop(self._endpoints, service, self._endpoints[service])
        self._new_members(memberships, uid)
        return old

    def _put_service(self, new: Service, endpoints: tuple[Endpoint, ...]) -> None:
        key = new.key
        old = self._services.get(key)
        if old is not None:
            self._forget_addresses(old, keep=new)
        self._services[key] = new
        self._new_members((key,))
        self._by_host[new.hostname] = _placed(self._by_host.get(new.hostname, ()), new)
        for vip in new.vips:
            self._by_vip[vip] = _placed(self._by_vip.get(vip, ()), new)
        for cidr in new.cidr_vips:
            self._by_cidr[cidr] = _placed(self._by_cidr.get(cidr, ()), new)
        for endpoint in endpoints:
            uid = endpoint.workload_uid
            self._endpoints.setdefault(key, {}).setdefault(uid, endpoint)
            self._written.setdefault(uid, set()).add(key)

    def _drop_service(self, key: NamespacedHostname) -> Service | None:
        old = self._services.pop(key, None)
        self._members.pop(key, None)
        self._former.pop(key, None)
        if old is not None:
            self._forget_addresses(old, keep=None)
            rest = _without(self._by_host[old.hostname], old)
            _set_or_drop(self._by_host, old.hostname, rest)
        return old

    def _forget_addresses(self, old: Service, keep: Service | None) -> None:
        """Take `old` off its addresses, but for those it shares with its successor."""
        for vip in set(old.vips).difference(keep.vips if keep else ()):
            _set_or_drop(self._by_vip, vip, _without(self._by_vip[vip], old))
        for cidr in set(old.cidr_vips).difference(keep.cidr_vips if keep else ()):
            _set_or_drop(self._by_cidr, cidr, _without(self._by_cidr[cidr], old))

    def _new_members(self, services: Iterable[NamespacedHostname], uid: str = "") -> None:
        """Have them made anew when they are asked for, also where `uid` is written as one."""
        for key in services:
            if key in self._members:
                self._former[key] = self._members.pop(key)
        if self._written and uid in self._written:
            self._new_members(self._written[uid])

    def _drop_policy(self, key: str) -> bool:
        old = self._policies.pop(key, None)
        if old is None:
            return False
        self._policies_version += 1
        if (bucket := _bucket(old)) is not None:
            self._policies_by_namespace[bucket].pop(key)
            _set_or_drop(self._policies_by_namespace, bucket, self._policies_by_namespace[bucket])
        return True

    def _is_local(self, workload: Workload) -> bool:
        return not self._local_node or workload.node == self._local_node

    # --- workloads

    def workload(self, uid: str) -> Workload | None:
        """The workload of this uid."""
        found = self._workloads.get(uid)
        return None if found is None else found[0]

    def workload_at(self, address: NetworkAddress) -> Workload | None:
        """The workload found at `address`; never one on its node's network."""
        found = self._by_address.get(address)
        return found[0] if found else None

    def local_workload(self, info: WorkloadInfo) -> Workload | None:
        """The workload of this node that a proxy was told to serve."""
        found = self._by_identity.get((info.namespace, info.service_account), {})
        return next((w for w in found.values() if w.name == info.name), None)

    def local_workloads(self) -> Iterator[Workload]:
        """The workloads of this node, in no order."""
        return (one for found in self._by_identity.values() for one in found.values())

    def has_account(self, namespace: str, service_account: str) -> bool:
        """Some workload of this node has this account."""
        return (namespace, service_account) in self._by_identity

    def memberships(self, uid: str) -> Memberships:
        """The services that the workload `uid` is an endpoint of, with its own port mappings."""
        found = self._workloads.get(uid)
        return {} if found is None else found[1]

    def workloads(self) -> Iterator[Workload]:
        """All workloads, in no order."""
        return (workload for workload, _ in self._workloads.values())

    # --- services

    def service(self, key: NamespacedHostname) -> Service | None:
        """The service of this key, whoever asks."""
        return self._services.get(key)

    def services(self) -> Iterator[Service]:
        """All services, in no order."""
        return iter(self._services.values())

    def services_of(self, workload: Workload) -> list[Service]:
        """The known ones of the services that `workload` names."""
        return [s for key in workload.services if (s := self._services.get(key))]

    def service_at(self, address: NetworkAddress, namespace: str | None = None) -> Service | None:
        """The service that answers for `address`, as a client of `namespace` sees it."""
        best = best_match(self._by_vip.get(address, ()), namespace)
        return best or self._service_in_range(address, namespace)

    def service_of_host(self, hostname: str, namespace: str | None = None) -> Service | None:
        """The service of `hostname`, as a client of `namespace` sees it."""
        return best_match(self._by_host.get(hostname, ()), namespace)

    def services_of_host(self, hostname: str) -> tuple[Service, ...]:
        """All services of `hostname`, for `best_match`, whoever asks."""
        return self._by_host.get(hostname, ())

    def _service_in_range(self, address: NetworkAddress, namespace: str | None) -> Service | None:
        """The narrowest range wins, but one of the client's own namespace goes first."""
        best: Service | None = None
        best_rank = (False, -1, False)
        for (network, cidr), services in self._by_cidr.items():
            if network != address.network or address.ip not in cidr:
                continue
            for service in _slots(services):
                own = service.namespace == namespace
                rank = (own, cidr.prefixlen, service.canonical)
                if service.is_visible_to(namespace) and rank > best_rank:
                    best, best_rank = service, rank
        return best

    def endpoint(self, service: Service, uid: str) -> Endpoint | None:
        """The part of the workload `uid` in `service`, if it is healthy enough for it."""
        found = self._endpoints.get(service.key, {}).get(uid)
        return found if found is not None and service.keeps(found) else None

    def endpoints(self, service: Service) -> Iterator[Endpoint]:
        """The endpoints of `service` that are healthy enough for it."""
        return filter(service.keeps, self._endpoints.get(service.key, {}).values())

    def members(self, service: Service) -> Members:
        """The endpoints of `service` with their workloads: the same object until they change."""
        key = service.key
        if self._services.get(key) is not service:  # who holds an old one
            return Members(service, self._pairs(service))
        found = self._members.get(key)
        if found is None:
            former = self._former.pop(key, None)
            found = self._members[key] = Members(service, self._pairs(service), former)
        return found

    def _pairs(self, service: Service) -> tuple[tuple[Endpoint, Workload], ...]:
        pairs = ((e, self.workload(e.workload_uid)) for e in self.endpoints(service))
        return tuple((e, w) for e, w in pairs if w is not None)

    def all_endpoints(self, service: Service) -> Iterator[Endpoint]:
        """The endpoints of `service`, healthy enough or not."""
        return iter(self._endpoints.get(service.key, {}).values())

    def staged(self) -> dict[NamespacedHostname, dict[str, Endpoint]]:
        """Endpoints of services that are not known yet."""
        return {k: dict(v) for k, v in self._endpoints.items() if k not in self._services}

    # --- either

    def at(
        self, address: NetworkAddress, namespace: str | None = None
    ) -> Workload | Service | None:
        """What is at `address`: a workload, else a service."""
        return self.workload_at(address) or self.service_at(address, namespace)

    def find(
        self, destination: NetworkAddress | NamespacedHostname, namespace: str | None = None
    ) -> Workload | Service | None:
        """What a waypoint or gateway reference names; a hostname is looked up whoever asks.

        Cost: linear in the number of workloads if a hostname is not that of a service.
        """
        if isinstance(destination, NetworkAddress):
            return self.at(destination, namespace)
        if (service := self._services.get(destination)) is not None:
            return service
        ns, hostname = destination
        named = (w for w in self.workloads() if w.hostname == hostname)
        return next((w for w in named if w.namespace == ns), None)

    # --- policies

    def policy(self, key: str) -> Policy | None:
        """The policy of this key."""
        return self._policies.get(key)

    def policies(self) -> Mapping[str, Policy]:
        """All policies by key."""
        return self._policies

    def policies_of_namespace(self, namespace: str) -> Mapping[str, Policy]:
        """The policies that apply to all of `namespace`; those of the empty one to the mesh."""
        return self._policies_by_namespace.get(namespace, {})


def best_match(
    services: tuple[Service, ...], namespace: str | None = None, preferred: str | None = None
) -> Service | None:
    """Which of several services a client of `namespace` means.

    That of its own namespace, else the last canonical one, else the last of namespace `preferred`
    (DNS only), else the first. Source: ztunnel src/state/service.rs.
    """
    if len(services) == 1:
        return services[0] if services[0].is_visible_to(namespace) else None
    visible = [s for s in _slots(services) if s.is_visible_to(namespace)]
    own = [s for s in visible if s.namespace == namespace]
    canonical = [s for s in visible if s.canonical]
    favoured = [s for s in visible if s.namespace == preferred]
    ordered = own[:1] or canonical[-1:] or favoured[-1:] or visible[:1]
    return ordered[0] if ordered else None


def _slots(services: tuple[Service, ...]) -> Iterable[Service]:
    """One service per namespace: the last that was written; `_placed` keeps them adjacent."""
    return {s.namespace: s for s in services}.values() if len(services) > 1 else services


def _placed(services: tuple[Service, ...], new: Service) -> tuple[Service, ...]:
    """`services` with `new` in the slot of its namespace, as the last one of it."""
    kept = [s for s in services if s.hostname != new.hostname or s.namespace != new.namespace]
    slot = next((i for i, s in enumerate(services) if s.namespace == new.namespace), len(kept))
    at = slot + sum(s.namespace == new.namespace for s in kept)
    return (*kept[:at], new, *kept[at:])


def _without(services: tuple[Service, ...], old: Service) -> tuple[Service, ...]:
    return tuple(s for s in services if s is not old)


def _ranked(workloads: tuple[Workload, ...], new: Workload) -> tuple[Workload, ...]:
    """By rank, then newest first."""
    return tuple(sorted((new, *workloads), key=lambda w: -w.rank))


def _addresses(workload: Workload) -> Iterable[NetworkAddress]:
    """Where a workload is found; nodes' addresses are shared, so they find nobody."""
    if workload.network_mode is NetworkMode.HOST_NETWORK:
        return ()
    network, ips = workload.network, workload.ips
    if len(ips) == 1:
        return (NetworkAddress(network, ips[0]),)
    return [NetworkAddress(network, ip) for ip in dict.fromkeys(ips)]


def _bucket(policy: Policy) -> str | None:
    """The namespace that a policy applies to as a whole; empty for the mesh."""
    match policy.scope:
        case PolicyScope.GLOBAL:
            return ""
        case PolicyScope.NAMESPACE:
            return policy.namespace
        case PolicyScope.WORKLOAD_SELECTOR:
            return None


def _set_or_drop(index: dict[_K, _V], key: _K, value: _V) -> None:
    """Empty values leave no trace."""
    if value:
        index[key] = value
    else:
        index.pop(key, None)
