# SPDX-License-Identifier: Apache-2.0
"""A route: the two ends of a connection, found by the names that people give them."""

from __future__ import annotations

import difflib
import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.errors import UnknownNameError
from ztunnel_py.state.address import NetworkAddress, SockAddr, canonical, parse_ip
from ztunnel_py.state.service import Service
from ztunnel_py.state.store import best_match
from ztunnel_py.state.workload import Protocol, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.store import Store

_PORT = re.compile(r"(.*):([0-9]{1,5})")
_NEAR = 3
"""How many names are suggested."""
_FALLBACK_PORT = 80
_NOWHERE = ipaddress.IPv4Address("0.0.0.0")  # noqa: S104  - says that there is no address


class Route(NamedTuple):
    """Who connects, and to where."""

    source: Workload
    """For an address that nobody knows, one without a namespace and without HBONE."""
    is_known: bool
    """Whether the source is a workload of the mesh."""
    src: Ip
    dst: SockAddr
    named: Service | Workload | None
    """What the destination was called by; None for an address."""

    @property
    def is_enrolled(self) -> bool:
        """Whether a proxy takes the source's connections."""
        return self.is_known and self.source.protocol is Protocol.HBONE


def route(store: Store, src: str, dst: str) -> Route:
    """The connection from `src` to `dst`.

    Args:
        store: the mesh.
        src: `namespace/name`, a name, a uid or an address.
        dst: `ip[:port]`, `hostname[:port]`, or `namespace/name[:port]` of a workload or service.

    Raises:
        UnknownNameError: there is nobody of such a name, or nobody is found by it.
    """
    source, is_known = _source(store, src, dst)
    ip, port, named = _destination(store, source, dst)
    own = [one for one in source.ips if one.version == ip.version] or list(source.ips)
    start = own[0] if own else _NOWHERE
    if is_known and (written := _ip(src)) is not None:
        start = written
    return Route(source, is_known, start, SockAddr(ip, port), named)


def shown(workload: Workload) -> str:
    """`namespace/name`, as people call it."""
    return f"{workload.namespace}/{workload.name or workload.uid}"


# --- the source


def _source(store: Store, src: str, dst: str) -> tuple[Workload, bool]:
    ip = _ip(src)
    if ip is not None:
        found = next((w for w in _at_any_network(store, ip)), None)
        if found is not None:
            return found, True
        return Workload("", name=src, ips=(ip,), network=_network_of(store, dst)), False
    workload = _workload(store, src)
    if workload is None:
        raise UnknownNameError(f"no workload {src!r}", _near(src, _workload_names(store)))
    return workload, True


def _network_of(store: Store, dst: str) -> str:
    """A network on which the destination is known, for a source of which nothing is."""
    ip = _ip(_split(dst)[0])
    if ip is None:
        return ""
    networks = [w.network for w in store.workloads() if ip in w.ips]
    networks += [vip.network for s in store.services() for vip in s.vips if vip.ip == ip]
    return "" if "" in networks else next(iter(networks), "")


def _workload(store: Store, name: str) -> Workload | None:
    """By uid, else by `namespace/name`, else by a name that only one has."""
    if (found := store.workload(name)) is not None:
        return found
    named = [w for w in store.workloads() if name in (shown(w), w.name) and name]
    qualified = [w for w in named if shown(w) == name]
    if qualified:
        return qualified[0]
    if len(named) > 1:
        raise UnknownNameError(f"several workloads are called {name!r}", [shown(w) for w in named])
    return named[0] if named else None


def _at_any_network(store: Store, ip: Ip) -> Iterator[Workload]:
    networks = dict.fromkeys(["", *(w.network for w in store.workloads())])
    for network in networks:
        if (found := store.workload_at(NetworkAddress(network, ip))) is not None:
            yield found


# --- the destination


def _destination(
    store: Store, source: Workload, dst: str
) -> tuple[Ip, int, Service | Workload | None]:
    name, port = _split(dst)
    ip = _ip(name)
    if ip is not None:
        at = NetworkAddress(source.network, ip)
        found = store.service_at(at, source.namespace) or store.workload_at(at)
        return ip, port if port is not None else _usual_port(store, found), None
    service = _service(store, source, name)
    if service is not None:
        port = port if port is not None else _usual_port(store, service)
        return _address_of(store, source, service), port, service
    workload = _workload(store, name)
    if workload is None:
        hosts = (w for w in store.workloads() if w.hostname == name)
        workload = next(hosts, None)
    if workload is None:
        known = [*(s.hostname for s in store.services()), *_workload_names(store)]
        raise UnknownNameError(f"no service or workload {name!r}", _near(name, known))
    if not workload.ips:
        raise UnknownNameError(f"workload {shown(workload)} has no address to connect to")
    port = port if port is not None else _usual_port(store, workload)
    return workload.ips[0], port, workload


def _service(store: Store, source: Workload, name: str) -> Service | None:
    """By hostname, as the source sees it or at all; else by `namespace/hostname` or its name."""
    if (found := store.service_of_host(name, source.namespace)) is not None:
        return found
    hosts = tuple(s for s in store.services() if s.hostname == name)
    if (found := best_match(hosts)) is not None:
        return found
    named = (s for s in store.services() if name in (str(s.key), f"{s.namespace}/{s.name}"))
    return next(named, None)


def _address_of(store: Store, source: Workload, service: Service) -> Ip:
    """What DNS would say: a VIP of the source's network, else the address of an endpoint."""
    local = [vip.ip for vip in service.vips if vip.network == source.network]
    for ip in sorted(local or [vip.ip for vip in service.vips], key=lambda one: one.version):
        return ip
    for endpoint in store.endpoints(service):
        workload = store.workload(endpoint.workload_uid)
        if workload is not None and workload.ips:
            return workload.ips[0]
    if service.cidr_vips:
        return service.cidr_vips[0].cidr[0]
    raise UnknownNameError(f"service {service.key} has no address to connect to")


def _usual_port(store: Store, found: Service | Workload | None) -> int:
    """The first port of a service; of a workload, the first at which a service finds it."""
    if isinstance(found, Service):
        return next(iter(found.ports), _FALLBACK_PORT)
    if found is not None:
        for mapping in store.memberships(found.uid).values():
            for target in mapping.values():
                return target
    return _FALLBACK_PORT


# --- text


def _split(text: str) -> tuple[str, int | None]:
    """A name and its port; IPv6 addresses need brackets to have one."""
    if _ip(text) is not None:
        return text, None
    match = _PORT.fullmatch(text)
    if match is None:
        return text, None
    if int(match[2]) > 65535:
        raise UnknownNameError(f"{match[2]} is no port")
    return match[1], int(match[2])


def _ip(text: str) -> Ip | None:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return canonical(parse_ip(bare))
    except ValueError:
        return None


def _workload_names(store: Store) -> list[str]:
    return [shown(workload) for workload in store.workloads()]


def _near(name: str, known: list[str]) -> list[str]:
    """Names like `name`, also if one of the two lacks its namespace or its domain."""
    near = difflib.get_close_matches(name, known, _NEAR)
    inside = [one for one in known if name and name in one]
    last = name.rpartition("/")[2]
    ends = {one.rpartition("/")[2].partition(".")[0]: one for one in known}
    loose = [ends[end] for end in difflib.get_close_matches(last, list(ends), _NEAR)]
    return list(dict.fromkeys([*near, *inside, *loose]))[:_NEAR]
