# SPDX-License-Identifier: Apache-2.0
"""Probes of the node by rules of iptables and sets of the kind `ipset`.

Source: spec redirection, section 4.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from pyroute2 import IPSet
from pyroute2.netlink.exceptions import NetlinkError

from ztunnel_py.redirection.host import SETS, Node, checked, is_owner, unmapped
from ztunnel_py.redirection.iptables_text import Contents
from ztunnel_py.redirection.plan import Family
from ztunnel_py.redirection.programs import RedirectionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyroute2.netlink.nfnetlink.ipset import ipset_msg

    from ztunnel_py.redirection.host import Address
    from ztunnel_py.redirection.iptables import Iptables

CHAIN = "ISTIO_POSTRT"
_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class Ipsets:
    """Its rules tell what sockets send from what is forwarded."""

    def __init__(self, node: Node, programs: Iptables) -> None:
        self._node = node
        self._programs = programs

    def create(self) -> None:
        """Makes empty sets and the rules; the jump to them is the first of POSTROUTING.

        Raises:
            RedirectionError: something failed.
        """
        self._node.do(self._create)

    def add(self, uid: str, address: Address) -> None:
        """Lets probes of a pod pass; a former owner of the address loses it.

        Raises:
            RedirectionError: the set is not there, or `uid` is none.
        """
        self._node.do(self._add, checked(uid), address)

    def remove(self, uid: str, address: Address) -> bool:
        """Takes the address out if it is this pod's; returns whether it was.

        Raises:
            RedirectionError: the kernel refuses.
        """
        return self._node.do(self._remove, uid, address)

    def entries(self) -> dict[Address, str]:
        """The UIDs of all pods, by address.

        Raises:
            RedirectionError: the kernel refuses, or the sets are not there.
        """
        return self._node.do(self._entries)

    def delete(self) -> None:
        """Takes rules and sets away; success if they are not there.

        Raises:
            RedirectionError: something failed.
        """
        self._node.do(self._delete)

    def _create(self) -> None:
        with _kernel() as kernel:
            for family in self._node.families:
                options: dict[str, Any] = {"family": _FAMILY[family], "comment": True}
                kernel.create(SETS[family], stype="hash:ip", exclusive=False, **options)
                kernel.flush(SETS[family])
        self._programs.change(
            {family: self._rules(family) for family in self._node.families}, CHAIN
        )

    def _rules(self, family: Family) -> dict[str, Contents]:
        rule = (
            f"-A {CHAIN} -p tcp -m owner --socket-exists -m set --match-set {SETS[family]} dst "
            f"-j SNAT --to-source {self._node.probe(family)}"
        )
        return {"nat": Contents({CHAIN: (rule,)}, (f"-I POSTROUTING -j {CHAIN}",))}

    def _add(self, uid: str, address: Address) -> None:
        address, family = unmapped(address)
        if family in self._node.families:
            with _kernel() as kernel:
                options: dict[str, Any] = {"family": _FAMILY[family], "comment": uid}
                kernel.add(SETS[family], str(address), exclusive=False, **options)

    def _remove(self, uid: str, address: Address) -> bool:
        address, family = unmapped(address)
        if not is_owner(self._entries(), uid, address):
            return False
        with _kernel() as kernel:
            kernel.delete(SETS[family], str(address), exclusive=False, family=_FAMILY[family])
        return True

    def _entries(self) -> dict[Address, str]:
        with _kernel() as kernel:
            return {
                ipaddress.ip_address(address): uid
                for family in self._node.families
                for message in kernel.list(SETS[family])
                for address, uid in _members(message)
            }

    def _delete(self) -> None:
        self._programs.change({family: {} for family in self._node.families}, CHAIN)
        with _kernel() as kernel:
            there = {message.get_attr("IPSET_ATTR_SETNAME") for message in kernel.list()}
            for family in self._node.families:
                if SETS[family] in there:
                    kernel.destroy(SETS[family])


def has_address_set(node: Node = Node()) -> bool:  # noqa: B008 - a value
    """The node has a set of the kind `ipset`: then its rules are those of iptables.

    A node that does not tell has none.
    """

    def ask() -> bool:
        with _kernel() as kernel:
            names = {message.get_attr("IPSET_ATTR_SETNAME") for message in kernel.list()}
        return any(SETS[family] in names for family in node.families)

    try:
        return node.do(ask)
    except (OSError, RedirectionError):
        return False


@contextlib.contextmanager
def _kernel() -> Iterator[IPSet]:
    try:
        with IPSet() as kernel:
            yield kernel
    except NetlinkError as error:
        raise RedirectionError(
            f"the kernel refuses to work on the sets of the probes: {error.args[-1]}; is this the "
            "node's namespace, and is CAP_NET_ADMIN given?"
        ) from error


def _members(message: ipset_msg) -> Iterator[tuple[str, str]]:
    entries = message.get_attr("IPSET_ATTR_ADT")
    for entry in entries.get_attrs("IPSET_ATTR_DATA") if entries else ():
        (address,) = (value for _, value, *_ in entry.get_attr("IPSET_ATTR_IP_FROM")["attrs"])
        yield address, entry.get_attr("IPSET_ATTR_COMMENT") or ""
