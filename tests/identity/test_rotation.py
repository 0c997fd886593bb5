# SPDX-License-Identifier: Apache-2.0
"""The mesh's root is replaced while everything runs: spec identity-ops, A.5.

First both roots are handed out, then the new one signs, then the old one is withdrawn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.authority import Authority
from tests.support.node import CART, PRICES
from tests.support.wait import until

if TYPE_CHECKING:
    from tests.support.node import Node, Served
    from ztunnel_py.identity.certificates import WorkloadCertificate


async def renewed(node: Node, signs: Authority, *trusted: Authority) -> None:
    """The cart's next certificate, of this authority and with these roots."""
    old = node.chain()
    node.ca.authority = signs
    signs.roots_pem = b"".join(one.pem for one in trusted)
    node.manager.renew(CART)
    await until(lambda: node.chain() != old, "the next certificate")


async def passes(served: Served, peer: WorkloadCertificate, trusted: bytes, port: int) -> bool:
    """A new connection of a peer that trusts these roots; False if its root is not trusted."""
    tunnel = await served.raw_tunnel(replace(peer, roots_pem=trusted))
    tunnel.greet()
    stream = tunnel.connect(authority=f"127.0.0.1:{port}")
    await until(lambda: tunnel.is_closed or stream in tunnel.headers, "an answer")
    assert tunnel.alert in ("", "TLSV1_ALERT_UNKNOWN_CA")
    return not tunnel.alert


async def test_root_is_replaced_without_a_refused_connection(served: Served, node: Node) -> None:
    old, new = node.root, Authority("new root")
    of_old, of_new, both = old.issue(PRICES), new.issue(PRICES), old.pem + new.pem
    app = await served.net.app()
    port = app.address.port
    early = await served.tunnel()
    assert await passes(served, of_old, old.pem, port)
    assert not await passes(served, of_new, both, port)

    await renewed(node, old, old, new)
    assert await passes(served, of_old, old.pem, port)
    assert await passes(served, of_new, both, port)

    await renewed(node, new, old, new)
    assert await passes(served, of_old, both, port)
    assert await passes(served, of_new, new.pem, port)

    await renewed(node, new, new)
    assert await passes(served, of_new, new.pem, port)
    assert not await passes(served, of_old, both, port)
    assert not early.is_closed
