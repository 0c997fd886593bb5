# SPDX-License-Identifier: Apache-2.0
"""The node's rules for probes, run as a program in the node's namespace.

probe_rules.py BACKEND VERB [ARGUMENTS ..]
    create, delete
    add UID ADDRESS
    remove UID ADDRESS: prints whether it was there
    entries: prints them
    fill UID=ADDRESS,.. ..
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from typing import TYPE_CHECKING

from ztunnel_py.redirection import host
from ztunnel_py.redirection.host_iptables import Ipsets
from ztunnel_py.redirection.host_nft import NftSets
from ztunnel_py.redirection.iptables import Iptables

if TYPE_CHECKING:
    from collections.abc import Callable


def rules(backend: str) -> Ipsets | NftSets:
    """Of each kind of programs; the user of this one stands for the kubelet's."""
    if backend == "nft":
        return NftSets(host.Node(), os.getuid())
    return Ipsets(host.Node(), Iptables(backend.removeprefix("iptables-")))


def pods(arguments: list[str]) -> dict[str, list[host.Address]]:
    """Addresses by UID."""
    pairs = (argument.partition("=") for argument in arguments)
    return {
        uid: [ipaddress.ip_address(one) for one in addresses.split(",") if one]
        for uid, _, addresses in pairs
    }


def main(backend: str, verb: str, *arguments: str) -> None:
    """Does one thing and prints what came of it."""
    sets = rules(backend)
    verbs: dict[str, Callable[[], object]] = {
        "create": sets.create,
        "delete": sets.delete,
        "add": lambda: sets.add(arguments[0], ipaddress.ip_address(arguments[1])),
        "remove": lambda: sets.remove(arguments[0], ipaddress.ip_address(arguments[1])),
        "entries": lambda: {str(address): uid for address, uid in sets.entries().items()},
        "fill": lambda: host.fill(sets, pods(list(arguments))),
    }
    print(json.dumps(verbs[verb]()))


if __name__ == "__main__":
    main(*sys.argv[1:])
