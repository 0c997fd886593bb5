# SPDX-License-Identifier: Apache-2.0
"""Whether a namespace has any rules, without a program: most pods have none before ours come.

All functions work in the namespace of the calling thread, in which no event loop may run.
"""

from __future__ import annotations

import socket
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from ztunnel_py.redirection.plan import Family

_LEGACY = {Family.IPV4: "ip_tables_names", Family.IPV6: "ip6_tables_names"}
_NFT = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_BOTH = 1
"""What the kernel calls `inet`."""


def has_legacy_tables(family: Family) -> bool:
    """The old kind of iptables has tables for a family; asking its program would make them."""
    try:
        return bool(Path(f"/proc/thread-self/net/{_LEGACY[family]}").read_text().strip())
    except OSError:
        return False


def has_nft_tables(family: Family | None) -> bool:
    """There are tables of nftables for a family, or, with None, for both at once.

    True where the kernel does not tell: its program then says why.
    """
    wanted = _BOTH if family is None else _NFT[family]
    try:
        with NFTables(nfgen_family=socket.AF_UNSPEC) as kernel:
            return any(table["nfgen_family"] == wanted for table in kernel.get_tables())
    except (OSError, NetlinkError):
        return True
