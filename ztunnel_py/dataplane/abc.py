# SPDX-License-Identifier: Apache-2.0
"""The contract with whatever moves bytes.

An engine accepts, asks, acts and reports; it never decides. It is driven from one event loop:

    questions   `question_fd` becomes readable, `recv_questions` drains, `reply` answers once each
    records     `record_fd` becomes readable, `recv_records` drains
    counters    read at any time, never reset

Everything else is a command. Two engines satisfy this protocol: `reference` (asyncio + h2, written
to be read) and the C core. Semantics, call by call: docs/boundary.md.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ztunnel_py.state.address import Ip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ztunnel_py.dataplane.counters import SlotCounts
    from ztunnel_py.decide.key import InboundKey, Key, PassthroughKey
    from ztunnel_py.decide.verdict import Epoch, LogFields, TrafficLabels, Verdict
    from ztunnel_py.errors import Reason
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.state.address import SockAddr


class Role(enum.Enum):
    """What a listener is for; the value is its `component` in log lines."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    PASSTHROUGH = "inbound plaintext"
    SOCKS5 = "socks5"


class Direction(enum.Enum):
    """Which side of the mesh a connection is on, as the access log says it."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


class DrainMode(enum.Enum):
    """How connections are ended."""

    GRACEFUL = "graceful"
    """Listeners close, tunnels say GOAWAY, what runs may finish."""
    IMMEDIATE = "immediate"
    """What runs is ended now, with `Reason.DRAINED`."""


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """Options of accepted and dialled sockets. Source: spec dataplane, section 1.5."""

    keepalive: bool = True
    keepalive_time_s: int = 180
    keepalive_interval_s: int = 180
    keepalive_retries: int = 9
    user_timeout: bool = False
    mark: int | None = None
    """SO_MARK of dialled sockets, and in other namespaces of listeners; None: unmarked."""
    port_reuse: bool = False
    """SO_REUSEPORT of listeners in other namespaces: another proxy may listen beside this one."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything an engine is told once. Sizes in bytes, times in seconds."""

    stream_window: int = 4 << 20
    connection_window: int = 16 << 20
    frame_size: int = 1 << 20
    max_streams_served: int = 200
    pool_max_streams: int = 100
    pool_idle_s: float = 300.0
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 20.0
    connect_timeout_s: float = 10.0
    handshake_timeout_s: float = 10.0
    """TLS of a tunnel, a free stream on it, a CONNECT's response; ztunnel has no such bound."""
    decision_timeout_s: float = 30.0
    handshakes_at_once: int = 1024
    """Accepted connections on 15008 that have not finished TLS, and so are not yet identified."""
    buffer_budget: int = 256 << 20
    """Bytes read and not yet written, of all connections of one workload."""
    tls12: bool = False
    """Also speak TLS 1.2, with its ECDHE suites of AES-GCM."""
    post_quantum: bool = False
    """Exchange keys by X25519MLKEM768 only; `start` refuses where the library does not know it."""
    orig_src: bool | None = None
    """Dial applications with the client's address: None tries, True requires, False never."""
    sockets: SocketOptions = SocketOptions()
    workers: int = 1
    """Threads that move bytes; the reference engine has none of its own."""
    flows_per_workload: int = 0
    """Verdicts kept for further connections of the same key; 0: every connection asks. The
    reference engine keeps none."""
    flow_idle_s: float = 60.0
    """A verdict that was not used for so long is forgotten."""
    questions_per_workload: int = 4096
    """Open questions; beyond them, connections are refused with `Reason.TOO_BUSY`."""
    acknowledge_timeout_s: float = 5.0
    """A question must be taken within that, and answered within `decision_timeout_s`."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a listener of one role is bound; port 0 lets the kernel choose (tests)."""

    role: Role
    address: str
    port: int


Resolve = Callable[[str, int], Awaitable[Ip]]
"""An address of a hostname, of an IP version; raises LookupFailedError if there is none."""


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A local workload to serve."""

    id: str
    listeners: tuple[ListenAddress, ...]
    netns: int | None = None
    """Descriptor of the network namespace of its sockets, duplicated by the engine; None: ours."""
    resolve: Resolve | None = None
    """Looks up hostnames that SOCKS5 clients ask for; None: they are refused."""


class QuestionKind(enum.Enum):
    """What an engine can ask."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    PASSTHROUGH = "passthrough"
    IDENTITY = "identity"
    """A handshake needs the workload's certificate: call `identity_set`, then reply. A FORWARD
    verdict means it is set; a DENY ends the handshake."""
    REMOTE = "remote"
    """Somebody answered at the end of an inner tunnel: the hop of a FORWARD verdict has the labels
    that the connection gets; a DENY leaves those of the hop that was taken."""


class Question(NamedTuple):
    """One miss; to be answered exactly once with `reply(id, verdict)`."""

    id: int
    kind: QuestionKind
    workload: str
    key: Key | None
    """None for IDENTITY."""


class RecordKind(enum.Enum):
    """What a record reports."""

    OPENED = "connection opened"
    CLOSED = "connection complete"
    DENIED = "connection failed"
    """Refused early; only addresses and the reason are known."""


@dataclass(slots=True)
class Steps:
    """When a connection reached each step, nanoseconds of a monotonic clock; 0 if it did not."""

    accepted_ns: int = 0
    decided_ns: int = 0
    tunnel_ns: int = 0
    """A tunnel to the next hop was at hand (outbound HBONE)."""
    connected_ns: int = 0
    """The next hop or the application is connected."""
    closed_ns: int = 0


@dataclass(slots=True)
class Record:
    """One event of a connection's life. Bytes are those written, per direction."""

    kind: RecordKind
    conn: int
    """Connection id, unique in the process."""
    workload: str
    direction: Direction
    src: SockAddr
    dst: SockAddr
    """`dst.addr` of the access log: next hop, local tunnel address, or original destination."""
    reason: Reason
    detail: str = ""
    original_dst: SockAddr | None = None
    hbone_addr: str = ""
    """Authority of the CONNECT, HBONE only."""
    app: SockAddr | None = None
    """Application address dialled (inbound)."""
    upstream_bytes: int = 0
    """Client to upstream."""
    downstream_bytes: int = 0
    """Upstream to client."""
    log: LogFields | None = None
    """None for DENIED."""
    policy: str = ""
    workload_name: str = ""
    protocol: str = ""
    """`TCP`, `HBONE`, `DOUBLEHBONE`."""
    tunnel_reused: bool | None = None
    """Outbound HBONE: the tunnel was in the pool. None where there is no tunnel."""
    steps: Steps | None = None
    trace: str = ""
    """The connection's id on all nodes that it passes, 32 hexadecimal digits."""
    span: str = ""
    """Id of the client's side of it, 16 digits; inbound, as that side has sent it."""


@dataclass(frozen=True, slots=True)
class ConnView:
    """A living connection, as `connections()` shows it."""

    id: int
    workload: str
    direction: Direction
    src: SockAddr
    original_dst: str
    actual_dst: SockAddr | None
    protocol: str
    age_s: float
    upstream_bytes: int
    downstream_bytes: int
    trace: str
    """As in its record."""
    # What the reference engine does not tell:
    state: str = ""
    """What it is doing: `deciding`, `dialling`, `relaying`, ..."""
    tunnel: int = 0
    """Id of the tunnel that carries it; 0 if there is none."""
    client_stalled_s: float = 0.0
    """For how long bytes have waited for a client that does not read."""
    upstream_stalled_s: float = 0.0
    client_waiting: int = 0
    """Those bytes."""
    upstream_waiting: int = 0


@dataclass(frozen=True, slots=True)
class TunnelView:
    """A living HBONE connection, as `tunnels()` shows it."""

    id: int
    workload: str
    direction: Direction
    remote: SockAddr
    identity: str
    streams: int
    age_s: float
    is_draining: bool
    # What the reference engine does not tell:
    worker: int = 0
    received_bytes: int = 0
    """Of DATA."""
    sent_bytes: int = 0
    stalled_s: float = 0.0
    """For how long its socket has taken nothing, though something waits."""
    unsent_bytes: int = 0
    send_window: int = 0
    """What the other side lets us send on the connection."""
    receive_window: int = 0
    """What we let it send."""


class RecordLog(Protocol):
    """Who writes records down, a batch at a time."""

    def room(self) -> int:
        """How many records it would take now without loss; the others can wait in the engine."""

    def begin(self) -> bool:
        """A batch begins; whether its ordinary endings may be told by `closed`."""

    def closed(
        self,
        src: bytes,
        dst: bytes,
        log: LogFields,
        authority: str,
        is_inbound: bool,
        upstream_bytes: int,
        downstream_bytes: int,
        duration_ns: int,
        trace: str,
    ) -> None:
        """A record of kind CLOSED with `Reason.OK`, in parts; addresses are packed."""

    def record(self, record: Record) -> None:
        """Any record."""

    def end(self) -> None:
        """The batch is complete."""


class DataPlane(Protocol):
    """An engine. All calls are made on the event loop's thread."""

    __impl__: str
    """Name of the engine: `native` or `reference`."""

    # --- life

    def start(self, settings: EngineSettings) -> None:
        """Takes its settings; before any other call.

        Raises:
            StartError: it cannot do what they ask for.
        """

    def step_aside(self) -> None:
        """Leaves new connections in pods to another proxy that listens there, if there is one.

        What the kernel has begun for this one is still served.
        """

    def drain(self, workload: str | None, mode: DrainMode) -> None:
        """Ends one workload's connections, or all; returns at once. May be called again."""

    async def drained(self, workload: str | None = None) -> None:
        """Returns when nothing in the scope lives any more; no deadline of its own."""

    async def stop(self) -> None:
        """Ends what is left, closes everything; records can still be read afterwards."""

    # --- workloads

    def workload_add(self, spec: WorkloadSpec) -> Mapping[Role, SockAddr]:
        """Binds the workload's listeners and returns their addresses; nothing is accepted yet.

        Raises:
            OSError: a listener cannot be bound, `filename` is its address; none is left open.
        """

    def workload_serve(self, workload: str) -> None:
        """Begins to accept."""

    def workload_remove(self, workload: str) -> None:
        """Closes its listeners and ends its connections at once."""

    def is_transparent(self, workload: str, role: Role) -> bool:
        """Whether the listener could be made transparent, so that client addresses are kept."""

    # --- identity

    def identity_set(self, workload: str, certificate: WorkloadCertificate) -> None:
        """New handshakes of the workload use this certificate; running tunnels keep theirs.

        Raises:
            ValueError: the certificate cannot be used (key mismatch, unparsable).
        """

    def identity_drop(self, workload: str) -> None:
        """Forgets the certificate; the next handshake asks for it."""

    async def revocations_set(self, lists: tuple[bytes, ...]) -> int:
        """Trusts nobody whom these lists revoke, from the next handshake on; they are all there is.

        Tunnels that live and are revoked by now end with what they carry, `Reason.CERT_REVOKED`;
        all others stay as they are. One call at a time.

        Args:
            lists: DER, as `identity.crl` reads them.

        Returns:
            How many tunnels ended.

        Raises:
            ValueError: a list cannot be read; those of before stay in force.
        """

    # --- questions

    @property
    def question_fd(self) -> int:
        """Readable while questions wait."""

    def recv_questions(self, limit: int) -> list[Question]:
        """At most `limit` questions, oldest first."""

    def reply(self, question: int, verdict: Verdict) -> None:
        """Answers a question; an id that is no longer open is ignored."""

    # --- epochs and live flows

    def epoch(self) -> Epoch:
        """The current versions; to be read before evaluating."""

    def epoch_bump(self, *, discovery: bool = False, policy: bool = False) -> None:
        """Makes verdicts of older versions misses."""

    def live_keys(self, workload: str) -> Mapping[int, InboundKey | PassthroughKey]:
        """Connection id to complete key of every live inbound connection, also while dialling.

        Empty for a workload that is not served.
        """

    def conn_kill(self, conns: Sequence[int], reason: Reason) -> None:
        """Ends connections with `reason`; unknown ids are ignored."""

    # --- looking

    def connections(self) -> list[ConnView]:
        """What lives."""

    def tunnels(self) -> list[TunnelView]:
        """HBONE connections of both directions."""

    def debug_counts(self) -> Mapping[str, int]:
        """Live objects by kind; all zero after `stop`."""

    # --- numbers and records

    def slots(self) -> Mapping[TrafficLabels, SlotCounts]:
        """Traffic counters by label set, as of now."""

    def events(self) -> Mapping[str, int]:
        """Event counters by name (`accept_exhausted`, `sockets_opened_source`, ..), as of now."""

    @property
    def record_fd(self) -> int:
        """Readable while records wait."""

    def recv_records(self, limit: int) -> list[Record]:
        """At most `limit` records, oldest first."""

    def write_records(self, limit: int, log: RecordLog) -> int:
        """The same, to a log; returns how many. What is written is as if by `log.record`."""

    def report_opened(self, is_wanted: bool, /) -> None:
        """Whether anybody reads records of kind OPENED; they may come all the same."""
