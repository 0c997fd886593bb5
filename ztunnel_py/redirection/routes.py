# SPDX-License-Identifier: Apache-2.0
"""The route and the policy rule that lead replies of a pod's application back to the proxy.

A reply goes to the client's address, and would leave the pod. Its mark leads it to table 100, in
which every address is local. All functions work in the namespace of the calling thread, in which no
event loop may run. Source: spec redirection, section 2.1.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ztunnel_py.netns import has_ipv6_loopback
from ztunnel_py.redirection.difference import Difference
from ztunnel_py.redirection.plan import REPLY_MARK, Family
from ztunnel_py.redirection.programs import RedirectionError

if TYPE_CHECKING:
    from collections.abc import Iterable

TABLE = 100
PRIORITY = 32764
EVERYWHERE = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
_MARK, _MASK = (int(part, 16) for part in REPLY_MARK.split("/"))
_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_LO = 1
"""The kernel gives `lo` this index in every namespace."""
_LOCAL, _HOST_SCOPE = 2, 254

_HINTS = {
    errno.EPERM: "; CAP_NET_ADMIN is needed in the pod",
    errno.ENETDOWN: "; is lo up?",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """The rule or the route of one family."""

    family: Family
    is_rule: bool

    def __str__(self) -> str:
        """As people call it."""
        return f"{'rule' if self.is_rule else 'route'} {self.words}"

    @property
    def words(self) -> str:
        """As `ip rule` or `ip route` is told."""
        if self.is_rule:
            return f"fwmark {REPLY_MARK} pref {PRIORITY} lookup {TABLE}"
        return f"local {EVERYWHERE[self.family]} dev lo scope host table {TABLE}"


def pieces(families: Iterable[Family]) -> list[Piece]:
    """Route and rule of each family, the route first."""
    return [Piece(family, is_rule) for family in families for is_rule in (False, True)]


def missing(families: Iterable[Family]) -> list[Difference]:
    """What `add` would add."""
    with IPRoute() as kernel:
        return [
            Difference(f"{piece.family.value} routing", str(piece), "")
            for piece in pieces(families)
            if _is_possible(piece) and not _is_there(kernel, piece)
        ]


def add(families: Iterable[Family]) -> list[Piece]:
    """Adds what is not there, and returns it; all or nothing.

    Raises:
        RedirectionError: the kernel refuses, with its words.
    """
    added: list[Piece] = []
    with IPRoute() as kernel:
        try:
            for piece in pieces(families):
                if _is_possible(piece) and not _is_there(kernel, piece):
                    _tell(kernel, "add" if piece.is_rule else "replace", piece)
                    added.append(piece)
        except RedirectionError:
            for piece in reversed(added):
                _tell(kernel, "del", piece)
            raise
    return added


def remove(unwanted: Iterable[Piece]) -> None:
    """Deletes what is there.

    Raises:
        RedirectionError: the kernel refuses, with its words.
    """
    with IPRoute() as kernel:
        for piece in unwanted:
            if _is_there(kernel, piece):
                _tell(kernel, "del", piece)


def _is_possible(piece: Piece) -> bool:
    """The kernel refuses a route by `lo` where that has no IPv6; all else works without it."""
    if piece.is_rule or piece.family is Family.IPV4:
        return True
    return has_ipv6_loopback(None)


def _is_there(kernel: IPRoute, piece: Piece) -> bool:
    family = _FAMILY[piece.family]
    if piece.is_rule:
        names = ("priority", "fwmark", "fwmask", "table")
        ours = (PRIORITY, _MARK, _MASK, TABLE)
        return any(tuple(map(rule.get, names)) == ours for rule in kernel.get_rules(family=family))
    return any(
        (route["type"], route["dst_len"], route.get("oif")) == (_LOCAL, 0, _LO)
        for route in kernel.get_routes(family=family, table=TABLE)
    )


def _tell(kernel: IPRoute, verb: str, piece: Piece) -> None:
    family = _FAMILY[piece.family]
    try:
        if piece.is_rule:
            rule: dict[str, Any] = {"priority": PRIORITY, "fwmark": _MARK, "fwmask": _MASK}
            kernel.rule(verb, family=family, table=TABLE, **rule)
        else:
            route: dict[str, Any] = {"dst": EVERYWHERE[piece.family], "oif": _LO}
            route |= {"type": _LOCAL, "scope": _HOST_SCOPE}
            kernel.route(verb, family=family, table=TABLE, **route)
    except NetlinkError as error:
        raise RedirectionError(
            f"the kernel refuses to {verb} the {piece.family.value} {piece}: "
            f"{os.strerror(error.code)}{_HINTS.get(error.code, '')}"
        ) from error
