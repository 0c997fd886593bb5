# SPDX-License-Identifier: Apache-2.0
"""The verdict: the only currency between decisions and whatever moves bytes.

A verdict is constant per flow. What differs per connection (ports, trace ids) is filled in by the
engine; which hop a connection takes is drawn by weight by the engine, so a cached verdict keeps
balancing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.address import SockAddr

UNKNOWN = "unknown"

FORWARDED_NETWORK = "x-forwarded-network"
"""A header of the CONNECT inside a DOUBLE_HBONE hop and of no other: where the client is."""

FORWARD_TTL_S = 60.0
"""How long a verdict may serve. A change of state ends it at once, by its epoch; this bounds what
has no epoch, and how long one that is never used again takes up room."""
DENIAL_TTL_S = 1.0
"""How long a refusal may serve: a client that insists costs a question a second, and whoever put
the mesh right never waits for longer."""


class Action(enum.Enum):
    """What the engine does with a connection."""

    FORWARD = "forward"
    DENY = "deny"
    PUNT = "punt"


class HopProtocol(enum.Enum):
    """How a hop is reached; the values are those of logs and dumps."""

    TCP = "TCP"
    HBONE = "HBONE"
    DOUBLE_HBONE = "DOUBLEHBONE"


class TrafficLabels(NamedTuple):
    """Labels of the `istio_tcp_*` metrics in emission order; an empty value prints `unknown`.

    `request_protocol` is always `tcp` and `response_flags` depends on the ending; the exposition
    inserts both before `connection_security_policy`. Source: spec dataplane, section 12.3.
    """

    reporter: str
    source_workload: str = ""
    source_canonical_service: str = ""
    source_canonical_revision: str = ""
    source_workload_namespace: str = ""
    source_principal: str = ""
    source_app: str = ""
    source_version: str = ""
    source_cluster: str = ""
    destination_service: str = ""
    destination_service_namespace: str = ""
    destination_service_name: str = ""
    destination_workload: str = ""
    destination_canonical_service: str = ""
    destination_canonical_revision: str = ""
    destination_workload_namespace: str = ""
    destination_principal: str = ""
    destination_app: str = ""
    destination_version: str = ""
    destination_cluster: str = ""
    connection_security_policy: str = UNKNOWN
    source_region: str = ""
    source_zone: str = ""
    destination_region: str = ""
    destination_zone: str = ""


class LogFields(NamedTuple):
    """The part of an access-log line that is constant per hop; empty fields are omitted.

    Source: spec dataplane, section 12.4.
    """

    src_workload: str = ""
    src_namespace: str = ""
    src_identity: str = ""
    src_cluster: str = ""
    dst_service: str = ""
    dst_workload: str = ""
    dst_namespace: str = ""
    dst_identity: str = ""
    dst_cluster: str = ""


class Lookup(NamedTuple):
    """The address of a hop whose workload has a hostname only is looked up for each connection."""

    hostname: str
    version: int
    """The family that is preferred: 4 or 6."""
    workload: str
    """Uid of the workload, as errors name it."""
    authority_port: int | None
    """Of the authority, if that is the looked-up address; None: the hop's is right as it is."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One possible next step of a connection."""

    protocol: HopProtocol
    address: SockAddr
    """Dialled address; without its ip while `lookup` is set."""
    labels: TrafficLabels
    log: LogFields
    weight: int = 1
    """Relative chance to be drawn; 0 is never drawn."""
    authority: str = ""
    """`:authority` of the CONNECT; empty for TCP."""
    sans: tuple[Identity, ...] = ()
    """Identities accepted from the server, in the order that is part of the pool's key."""
    keep_source: bool = False
    """Dial with the client's address, where the listener was made transparent."""
    inner_authority: str = ""
    """`:authority` of the CONNECT inside the tunnel; DOUBLE_HBONE only."""
    inner_sans: tuple[Identity, ...] = ()
    """Identities accepted from the server at the end of the inner tunnel."""
    lookup: Lookup | None = None
    """What is left to do before the hop can be gone; engines never see such a hop."""

    @property
    def place(self) -> str:
        """Where it leads, for people."""
        if self.lookup is None:
            return str(self.address)
        return f"{self.lookup.hostname}:{self.address.port} (looked up for each connection)"


@dataclass(frozen=True, slots=True)
class Preface:
    """A PROXY v2 header sent to the application before the client's bytes."""

    target: SockAddr
    """Destination address in the header."""


class Note(NamedTuple):
    """A log line that a decision asks for; `decide/` itself does not log."""

    target: str
    level: str
    message: str
    fields: Mapping[str, object]


class Epoch(NamedTuple):
    """Versions of what a verdict was decided from."""

    discovery: int = 0
    policy: int = 0


EPOCH_ZERO = Epoch()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with one flow.

    FORWARD has at least one hop. DENY with a recorded reason has exactly one hop, for its labels
    and log fields; DENY with an early reason has none.
    """

    action: Action
    reason: Reason = Reason.OK
    detail: str = ""
    """Completes the reason's text."""
    hops: tuple[Hop, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    """Constant headers: of the CONNECT (outbound, see FORWARDED_NETWORK), of its 200 response
    (inbound)."""
    forwarded_host: str = ""
    """Service hostname for `forwarded: ..;host=`; outbound only."""
    preface: Preface | None = None
    policy: str = ""
    """What authorization said, for people: `allowed by shop/prices-callers`; inbound only."""
    workload: str = ""
    """`namespace/name` of the local workload, for people."""
    notes: tuple[Note, ...] = field(default=(), compare=False)
    epoch: Epoch = EPOCH_ZERO
    uses_source: bool = True
    """The decision read the source address: the verdict holds for that source only."""
    uses_host: bool = True
    """It read the forwarded host (inbound)."""
    uses_claims: bool = True
    """It read network or baggage (inbound)."""
    looks_up: bool = False
    """Some hop has a `lookup`."""
    ttl_s: float = 0.0
    """For how long it may serve further connections of its key; 0: this one only."""

    @classmethod
    def deny(cls, reason: Reason, detail: str = "", hop: Hop | None = None) -> Verdict:
        """A refusal; `hop` carries labels and log fields if the reason is a recorded one."""
        return cls(Action.DENY, reason, detail, hops=() if hop is None else (hop,))
