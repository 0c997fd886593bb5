# SPDX-License-Identifier: Apache-2.0
"""What answers for an address: the workloads that a connection to it may go to.

Source: spec state, sections 4.2 and 4.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from ztunnel_py.decide import balance
from ztunnel_py.decide.refusal import Refused
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from ztunnel_py.decide.balance import Mode
    from ztunnel_py.state.address import Ip, NetworkAddress
    from ztunnel_py.state.service import Service
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload


class Upstream(NamedTuple):
    """A workload that a connection may go to."""

    workload: Workload
    port: int
    service: Service | None = None
    """The service through which it was found."""
    weight: int = 1


Upstreams = tuple[Upstream, ...]
"""All that are equally good."""


def find(
    store: Store, source: Workload, address: NetworkAddress, port: int, mode: Mode
) -> Upstreams:
    """Who answers for `address`; nobody if it is unknown, or a service that passes through.

    A service goes first, and if none of its endpoints will do there is no falling back.
    """
    service = store.service_at(address, source.namespace)
    if service is not None:
        if service.is_passthrough:
            return ()
        return of_service(store, source, service, port, mode)
    workload = store.workload_at(address)
    return () if workload is None else (Upstream(workload, port),)


def of_service(
    store: Store, source: Workload, service: Service, port: int, mode: Mode
) -> Upstreams:
    """The endpoints of `service` that a connection from `source` may go to.

    Kept with the members of the service: many clients and connections have the same.
    """
    members = store.members(service)
    key = (port, mode, balance.reads(source, service))
    kept = cast("Upstreams | None", members.derived(key))
    if kept is None:
        kept = tuple(
            Upstream(workload, target, service, workload.capacity)
            for workload, target in balance.candidates(members, source, port, mode)
        )
        members.keep(key, kept)
    return kept


def select_ip(upstream: Upstream, original: Ip) -> Ip | None:
    """Where to dial `upstream` for a connection that was meant for `original`.

    None: it has a hostname instead.

    Raises:
        Refused: it has neither.
    """
    workload = upstream.workload
    if original in workload.ips:
        return original
    families = upstream.service.ip_families if upstream.service is not None else None
    usable = [ip for ip in workload.ips if families is None or families.accepts(ip)]
    for ip in usable:
        if ip.version == original.version:
            return ip
    if usable:
        return usable[0]
    if workload.hostname:
        return None
    raise Refused(Reason.NO_ROUTE, str(workload))
