# SPDX-License-Identifier: Apache-2.0
"""What a decision may depend on: the keys of the kinds of flow.

A key holds everything that the data plane can see and that `decide/` may read. What a client can
choose freely and no decision needs (ports of the source, trace ids) is not in a key, so that it
cannot turn every connection into a question of its own.

A decision reads its key through a *reading*, which remembers what was asked for. A verdict may
serve every key that agrees with its own in those fields (core/key.h masks the others out), so
nobody says by hand what a verdict depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


class RemoteKey(NamedTuple):
    """Who has answered at the end of an inner tunnel (double HBONE)."""

    workload: str
    dst: SockAddr
    """Original destination of the connection."""
    identity: Identity | None
    """First SPIFFE identity of the server's certificate inside."""
    baggage: tuple[str, ...] | None = ()
    """Values of the `baggage` headers of its response; None if one is not visible ASCII."""


Key = OutboundKey | InboundKey | PassthroughKey | RemoteKey


@dataclass(slots=True)
class Uses:
    """Which of the fields that a decision may leave alone it has read; all others always count."""

    source: bool = False
    """The source's address."""
    host: bool = False
    """The forwarded host."""
    claims: bool = False
    """Network or baggage."""


@dataclass(frozen=True, slots=True)
class CapturedReading:
    """How a decision sees the key of a captured connection."""

    _key: OutboundKey | PassthroughKey
    uses: Uses = field(default_factory=Uses)

    @property
    def dst(self) -> SockAddr:
        """Original destination."""
        return self._key.dst

    @property
    def src(self) -> Ip:
        """The source's address."""
        self.uses.source = True
        return self._key.src


@dataclass(frozen=True, slots=True)
class RequestReading:
    """How a decision sees the key of a CONNECT stream."""

    _key: InboundKey
    uses: Uses = field(default_factory=Uses)

    @property
    def local(self) -> Ip:
        """See `InboundKey`, as for the others."""
        return self._key.local

    @property
    def identity(self) -> Identity | None:
        """Proved by the client."""
        return self._key.identity

    @property
    def authority(self) -> str:
        """What the client wants to reach."""
        return self._key.authority

    @property
    def src(self) -> Ip:
        """The source's address."""
        self.uses.source = True
        return self._key.src

    @property
    def forwarded_host(self) -> str:
        """A claim of the client: telemetry only."""
        self.uses.host = True
        return self._key.forwarded_host

    @property
    def network(self) -> str | None:
        """A claim of the client: telemetry only."""
        self.uses.claims = True
        return self._key.network

    @property
    def baggage(self) -> tuple[str, ...] | None:
        """A claim of the client: telemetry only."""
        self.uses.claims = True
        return self._key.baggage
