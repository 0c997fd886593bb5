# SPDX-License-Identifier: Apache-2.0
"""Probes of the node by rules and sets of nft, in one table.

Source: spec redirection, section 3.4.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from ztunnel_py.redirection.host import SETS, checked, is_owner, unmapped
from ztunnel_py.redirection.plan import Family
from ztunnel_py.redirection.programs import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.redirection.host import Address, Node

TABLE = "inet istio-ambient-nat"
_WORDS = {Family.IPV4: ("ipv4_addr", "ip"), Family.IPV6: ("ipv6_addr", "ip6")}
_ELEMENT = re.compile(r'([0-9a-f:.]+) comment "([^"]*)"')


class NftSets:
    """Rules and sets of nft, in one table. All programs of the kubelet's user count as probes."""

    def __init__(self, node: Node, kubelet_uid: int) -> None:
        self._node = node
        self._kubelet_uid = kubelet_uid

    def create(self) -> None:
        """Makes empty sets and the rules, at once.

        Raises:
            RedirectionError: nft failed.
        """
        lines = [f"{verb} table {TABLE}" for verb in ("add", "delete", "add")]
        hook = "{ type nat hook postrouting priority 100; }"
        lines.append(f"add chain {TABLE} postrouting {hook}")
        for family in self._node.families:
            kind, ip = _WORDS[family]
            lines += [
                f"add set {TABLE} {SETS[family]} {{ type {kind}; }}",
                f"add rule {TABLE} postrouting meta l4proto tcp meta skuid {self._kubelet_uid} "
                f"{ip} daddr @{SETS[family]} counter snat {ip} to {self._node.probe(family)}",
            ]
        self._tell(lines)

    def add(self, uid: str, address: Address) -> None:
        """Lets probes of a pod pass; a former owner of the address loses it.

        Raises:
            RedirectionError: the set is not there, or `uid` is none.
        """
        comment = f'comment "{checked(uid)}"'
        address, family = unmapped(address)
        if family in self._node.families:
            element = f"element {TABLE} {SETS[family]}"
            gone = [f"add {element} {{ {address} }}", f"delete {element} {{ {address} }}"]
            self._tell([*gone, f"add {element} {{ {address} {comment} }}"])

    def remove(self, uid: str, address: Address) -> bool:
        """Takes the address out if it is this pod's; returns whether it was.

        Raises:
            RedirectionError: nft failed.
        """
        address, family = unmapped(address)
        if not is_owner(self.entries(), uid, address):
            return False
        self._tell([f"delete element {TABLE} {SETS[family]} {{ {address} }}"])
        return True

    def entries(self) -> dict[Address, str]:
        """The UIDs of all pods, by address.

        Raises:
            RedirectionError: nft failed, or the sets are not there.
        """
        listed = (
            self._node.do(run, ["nft", "list", "set", *TABLE.split(), SETS[family]])
            for family in self._node.families
        )
        return {
            ipaddress.ip_address(address): uid
            for text in listed
            for address, uid in _ELEMENT.findall(text)
        }

    def delete(self) -> None:
        """Takes rules and sets away; success if they are not there.

        Raises:
            RedirectionError: nft failed.
        """
        self._tell([f"add table {TABLE}", f"delete table {TABLE}"])

    def _tell(self, lines: Sequence[str]) -> None:
        self._node.do(run, ["nft", "-f", "-"], "\n".join(lines) + "\n")
