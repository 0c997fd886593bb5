# SPDX-License-Identifier: Apache-2.0
"""What the node does so that the kubelet's probes pass the proxies of its pods.

A probe carries no identity. What a socket of the node sends by TCP to an enrolled pod is therefore
given a reserved source address, which the rules in the pod let through; what the node forwards is
not. The pods' addresses are in a set; the comment of an entry is the UID of its pod.

`host_iptables.Ipsets` and `host_nft.NftSets` do the same by different programs. Their methods
block, work in a thread of their own, and repeat without harm: where there is an event loop, call
them with `asyncio.to_thread`. Nothing of it ends with the program. Source: spec redirection,
sections 3.4 and 4.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ztunnel_py.redirection.plan import PROBE_V4, PROBE_V6, Family
from ztunnel_py.redirection.programs import RedirectionError, call_inside
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ztunnel_py.netns import Netns
    from ztunnel_py.redirection.host_iptables import Ipsets
    from ztunnel_py.redirection.host_nft import NftSets

SETS = {Family.IPV4: "istio-inpod-probes-v4", Family.IPV6: "istio-inpod-probes-v6"}
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
"""What both programs keep as a comment; with our agent a UID is `namespace/name`."""
_log = logger("ztunnel::redirection")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Node:
    """Where the rules are, and for what."""

    families: tuple[Family, ...] = tuple(Family)
    probe_v4: ipaddress.IPv4Address = PROBE_V4
    probe_v6: ipaddress.IPv6Address = PROBE_V6
    where: Netns | None = None
    """The node's namespace; None: the caller's."""

    def probe(self, family: Family) -> Address:
        """The reserved source address."""
        return self.probe_v4 if family is Family.IPV4 else self.probe_v6

    def do(self, function: Callable[..., T], *arguments: object) -> T:
        """Calls a function in the node's namespace."""
        return call_inside(self.where, functools.partial(function, *arguments))


def fill(sets: Ipsets | NftSets, pods: Mapping[str, Sequence[Address]]) -> None:
    """Makes the sets those of these pods, addresses by UID.

    Other entries stay if some pod has no address: one of them may be its.

    Raises:
        RedirectionError: something failed.
    """
    owners = {unmapped(address)[0]: uid for uid, addresses in pods.items() for address in addresses}
    for address, uid in owners.items():
        sets.add(uid, address)
    if all(pods.values()):
        for address, uid in sets.entries().items():
            if address not in owners:
                sets.remove(uid, address)


def unmapped(address: Address) -> tuple[Address, Family]:
    """The address, IPv4 in its own form, and its family."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return address, Family.IPV6
        address = address.ipv4_mapped
    return address, Family.IPV4


def checked(uid: str) -> str:
    """A pod's UID.

    Raises:
        RedirectionError: it is none.
    """
    if not _UID.fullmatch(uid):
        raise RedirectionError(f"{uid!r} is no UID of a pod")
    return uid


def is_owner(entries: Mapping[Address, str], uid: str, address: Address) -> bool:
    """The entry is this pod's; says so where it is another's, who has taken over the address."""
    owner = entries.get(address)
    if owner not in (None, uid):
        _log.info(f"probes: {address} stays, it is now of pod {owner} and not of {uid}")
    return owner == uid
