# SPDX-License-Identifier: Apache-2.0
"""What the mesh answers to a query for addresses; pure, and read from the store.

A name that a service has is answered here and nowhere else, even if there is nothing to say. All
other names are somebody else's. Source: spec state, sections 7.3 to 7.6; ztunnel src/dns/server.rs.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.dns import names
from ztunnel_py.state.service import IpFamilies
from ztunnel_py.state.store import best_match

if TYPE_CHECKING:
    from ztunnel_py.dns.names import Labels, View
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.service import Service
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload

_EXCLUDED = {IpFamilies.IPV4: 6, IpFamilies.IPV6: 4}


class Result(enum.Enum):
    """How a query that the mesh answers came out; the values are those of the log."""

    SUCCESS = "success"
    EMPTY = "no records"
    UNSUPPORTED = "service does not support this record type"


class Answer(NamedTuple):
    """Addresses, in no order, and whose they are."""

    result: Result
    addresses: tuple[Ip, ...] = ()
    owner: Labels | None = None
    """The name that the asked one leads to by a CNAME record; None: the asked one has them."""


class Settings(NamedTuple):
    """What answers depend on besides the mesh."""

    domain: Labels
    """Of the cluster."""
    ipv6: bool = True
    preferred_namespace: str | None = None


class _Match(NamedTuple):
    service: Service
    host: str
    alias: names.Alias


def decide(
    store: Store, settings: Settings, client: Workload, view: View, asked: Labels, version: int
) -> Answer | None:
    """What `client` gets for the addresses of `asked` of an IP version; None: not our name."""
    found = _find(store, settings, view, asked)
    if found is None:
        return None
    service, host, alias = found
    is_disabled = version == 6 and not settings.ipv6
    if is_disabled or (service.ip_families and _EXCLUDED.get(service.ip_families) == version):
        return Answer(Result.UNSUPPORTED)
    addresses = _addresses(store, service, client, version)
    if not addresses:
        return Answer(Result.EMPTY)
    return Answer(Result.SUCCESS, addresses, None if names.is_wildcard(host) else alias.stripped)


def _find(store: Store, settings: Settings, view: View, asked: Labels) -> _Match | None:
    """The service behind the first name that has one.

    So the wildcard of an earlier alias wins over the very name of a later one.
    """
    kubernetes = ".".join(("", "svc", *settings.domain))
    for alias in names.aliases(asked, view):
        for host in names.candidates(alias.name):
            known = store.services_of_host(host)
            if not known:
                continue
            served = tuple(s for s in known if s.vips or s.hostname.endswith(kubernetes))
            service = best_match(served, view.namespace, settings.preferred_namespace)
            if service is not None:
                return _Match(service, host, alias)
    return None


def _addresses(store: Store, service: Service, client: Workload, version: int) -> tuple[Ip, ...]:
    """VIPs that the client can reach; of a service without VIPs one address of each endpoint."""
    if service.vips:
        reachable = (vip.ip for vip in service.vips if vip.network == client.network)
        return tuple(ip for ip in reachable if ip.version == version)
    firsts = (
        next((ip for ip in workload.ips if ip.version == version), None)
        for _, workload in store.members(service).pairs
    )
    return tuple(ip for ip in firsts if ip is not None)
