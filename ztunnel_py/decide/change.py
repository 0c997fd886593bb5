# SPDX-License-Identifier: Apache-2.0
"""A change of the mesh: in words, as edits of the local state's YAML tree, and as updates.

The updates are what the edits amount to once the tree is loaded again, so that a change can be
tried on a copy of the store before it is advised.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.decide import names
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.store import PolicyRemoval, PolicyUpdate, ServiceUpdate, WorkloadUpdate
from ztunnel_py.state.workload import Protocol, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.policy import Policy, Rule
    from ztunnel_py.state.service import Ports, Service
    from ztunnel_py.state.store import Store, Update
    from ztunnel_py.state.workload import GatewayAddress, NamespacedHostname

Part = str | int | dict[str, str]
"""One step into the tree: a key, an index, or what the chosen element of a list has."""
Path = tuple[Part, ...]


class Edit(NamedTuple):
    """One edit of the tree."""

    op: str
    """`set` a key or element, `add` to a list, `remove` a key or element."""
    path: Path
    value: object = None
    """Plain; nothing for `remove`."""

    def tree(self) -> dict[str, object]:
        """As plain values."""
        plain: dict[str, object] = {"op": self.op, "path": list(self.path)}
        return plain if self.op == "remove" else {**plain, "value": self.value}


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One thing to change."""

    words: str
    """For people, an imperative."""
    edits: tuple[Edit, ...]
    """In order."""
    updates: tuple[Update, ...]

    def tree(self) -> dict[str, object]:
        """As plain values."""
        return {"words": self.words, "edits": [edit.tree() for edit in self.edits]}


def workload_path(workload: Workload) -> Path:
    """Where `workload` is in the tree."""
    if workload.uid:
        return "workloads", {"uid": workload.uid}
    return "workloads", {"namespace": workload.namespace, "name": workload.name}


def service_path(service: Service) -> Path:
    """Where `service` is in the tree."""
    return "services", {"namespace": service.namespace, "hostname": service.hostname}


def policy_path(policy: Policy) -> Path:
    """Where `policy` is in the tree."""
    return "policies", {"namespace": policy.namespace, "name": policy.name}


def in_place(
    store: Store, new: Workload, memberships: Mapping[NamespacedHostname, Ports]
) -> tuple[Update, ...]:
    """The updates that replace a workload where it is.

    Of several on one address the newest is found, so those behind it in a file stay the newer ones.
    """
    updates = [WorkloadUpdate(new, memberships)]
    is_behind = False
    for other in store.workloads():
        if other.uid == new.uid:
            is_behind = True
        elif is_behind and not set(other.ips).isdisjoint(new.ips):
            updates.append(WorkloadUpdate(other, store.memberships(other.uid)))
    return tuple(updates)


def of_workload(
    store: Store, workload: Workload, words: str, key: str, value: object, **fields: object
) -> Change:
    """Set one key of a workload; `fields` say the same of the object."""
    edit = Edit("set", (*workload_path(workload), key), value)
    new = dataclasses.replace(workload, **fields)  # type: ignore[arg-type]
    return Change(words, (edit,), in_place(store, new, store.memberships(workload.uid)))


def of_service(service: Service, words: str, path: Path, value: object, **fields: object) -> Change:
    """Set what is at `path` in a service; `fields` say the same of the object."""
    edit = Edit("set", (*service_path(service), *path), value)
    new = dataclasses.replace(service, **fields)  # type: ignore[arg-type]
    return Change(words, (edit,), (ServiceUpdate(new),))


def of_policy(
    key: str,
    policy: Policy,
    words: str,
    edits: tuple[Edit, ...],
    rules: tuple[Rule, ...],
) -> Change:
    """Edit a policy's rules; `edits` have paths inside the policy."""
    inside = tuple(edit._replace(path=(*policy_path(policy), *edit.path)) for edit in edits)
    return Change(words, inside, (PolicyUpdate(key, dataclasses.replace(policy, rules=rules)),))


def drop_policy(key: str, policy: Policy) -> Change:
    """Remove a policy."""
    edit = Edit("remove", policy_path(policy))
    return Change(f"remove policy {policy.key}", (edit,), (PolicyRemoval(key),))


def enrol(store: Store, workload: Workload) -> Change:
    """Let a workload speak HBONE."""
    words = f"enrol {names.shown(workload)} in the mesh: protocol HBONE"
    return of_workload(store, workload, words, "protocol", "HBONE", protocol=Protocol.HBONE)


def join(network: str, ip: Ip, like: Workload) -> Change:
    """Make an address that nobody knows a workload, with the trust domain of another."""
    name = str(ip).replace(":", "-").replace(".", "-")
    new = Workload(
        namespace=like.namespace or "default",
        uid=f"//Pod/{like.namespace or 'default'}/{name}",
        name=name,
        ips=(ip,),
        network=network,
        protocol=Protocol.HBONE,
        trust_domain=like.trust_domain,
        service_account=name,
    )
    value = {
        "uid": new.uid,
        "name": name,
        "namespace": new.namespace,
        "serviceAccount": name,
        "trustDomain": new.trust_domain,
        "workloadIps": [str(ip)],
        "network": network,
        "protocol": "HBONE",
        "services": {},
    }
    words = f"add {ip} to the mesh: a workload with protocol HBONE"
    edit = Edit("add", ("workloads",), value)
    return Change(words, (edit,), (WorkloadUpdate(new, {}),))


def serve(
    store: Store, workload: Workload, key: NamespacedHostname, ports: Ports, words: str
) -> Change:
    """Make a workload an endpoint of a service, with that mapping of ports."""
    edit = Edit("set", (*workload_path(workload), "services", str(key)), dict(ports))
    memberships: Mapping[NamespacedHostname, Ports] = {
        **store.memberships(workload.uid),
        key: ports,
    }
    return Change(words, (edit,), in_place(store, workload, memberships))


def reference(address: GatewayAddress) -> dict[str, object]:
    """A reference to a waypoint or gateway, as the tree has it."""
    there = address.destination
    shown = f"{there.network}/{there.ip}" if isinstance(there, NetworkAddress) else str(there)
    return {"destination": shown, "hboneMtlsPort": address.hbone_mtls_port}
