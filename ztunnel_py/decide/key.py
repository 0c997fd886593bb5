# SPDX-License-Identifier: Apache-2.0
"""What a decision may depend on: the keys of the three kinds of flow.

A key holds everything that the data plane can see and that `decide/` may read. What a client can
choose freely and no decision needs (ports of the source, trace ids) is not in a key, so that it
cannot turn every connection into a question of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.address import Ip, SockAddr


class OutboundKey(NamedTuple):
    """A connection captured on 15001."""

    workload: str
    """Id of the local workload, as given to `DataPlane.workload_add`."""
    src: Ip
    dst: SockAddr
    """Original destination."""


class InboundKey(NamedTuple):
    """A CONNECT stream on 15008."""

    workload: str
    local: Ip
    """Local address of the tunnel: the pod address that was dialled."""
    src: Ip
    """The tunnel's TCP source; never taken from a header."""
    identity: Identity | None
    """First SPIFFE identity of the client certificate."""
    authority: str
    forwarded_host: str = ""
    """`host=` of the `forwarded` header: telemetry only."""
    network: str | None = None
    """`x-forwarded-network`, if sent: telemetry only."""
    baggage: tuple[str, ...] | None = ()
    """Values of the `baggage` headers, telemetry only; None if one is not visible ASCII."""


class PassthroughKey(NamedTuple):
    """A plaintext connection captured on 15006."""

    workload: str
    src: Ip
    dst: SockAddr
    """Original destination."""
