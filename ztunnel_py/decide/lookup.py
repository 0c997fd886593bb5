# SPDX-License-Identifier: Apache-2.0
"""Workloads that have a hostname and no address: their hops, before and after DNS was asked.

Source: spec state, sections 4.4 and 4.5.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from ztunnel_py.decide import upstream
from ztunnel_py.decide.refusal import Refused
from ztunnel_py.decide.verdict import Lookup
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ztunnel_py.decide.upstream import Upstream
    from ztunnel_py.decide.verdict import Hop
    from ztunnel_py.state.address import Ip

_NOWHERE: dict[int, Ip] = {4: ipaddress.IPv4Address(0), 6: ipaddress.IPv6Address(0)}


def place(
    found: Upstream, original: Ip, port: int, *, is_authority: bool = False
) -> tuple[SockAddr, Lookup | None]:
    """Where to dial `found` at `port`, for a connection meant for `original`; or what to look up.

    With `is_authority`, the address with the upstream's own port is also the authority.

    Raises:
        Refused: it has neither a usable address nor a hostname.
    """
    ip = upstream.select_ip(found, original)
    if ip is not None:
        return SockAddr(ip, port), None
    workload, version = found.workload, original.version
    authority_port = found.port if is_authority else None
    lookup = Lookup(workload.hostname, version, workload.uid, authority_port)
    return SockAddr(_NOWHERE[version], port), lookup


def located(hop: Hop, ips: Sequence[Ip], draw: Callable[[Sequence[Ip]], Ip]) -> Hop:
    """`hop` with one of the addresses that its hostname has, of the wanted family if there is one.

    Raises:
        Refused: it has none.
    """
    lookup = hop.lookup
    assert lookup is not None
    usable = [ip for ip in ips if ip.version == lookup.version] or ips
    if not usable:
        raise Refused(Reason.LOOKUP_EMPTY, lookup.workload)
    ip, port = draw(usable), lookup.authority_port
    return dataclasses.replace(
        hop,
        address=SockAddr(ip, hop.address.port),
        authority=hop.authority if port is None else str(SockAddr(ip, port)),
        lookup=None,
    )
