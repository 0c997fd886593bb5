# SPDX-License-Identifier: Apache-2.0
"""Access log: one line for a connection's opening, end or early refusal.

Fields, their order and the levels are ztunnel's. The byte counts are the application's view: what
the local application sent is `bytes_sent`. Metrics count by direction instead (client to upstream
is received), so the two agree on one side of the mesh only. Source: spec dataplane, section 12.4.

One field is ours, the last: `connection.id`, the same in the lines of both sides of the mesh.

A proxy may close thousands of connections a second, so an ordinary ending has a way of its own,
`AccessLog.closed`: what all connections of a hop have in common is rendered once. `log_record` says
what every line looks like; both write the same text.

`ztunnel::path` at debug is ours: the steps of one connection and when it reached each, for people
who ask where the time went.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ztunnel_py.dataplane.abc import Direction, RecordKind
from ztunnel_py.dataplane.packing import DIRECTIONS, NOWHERE, unpack_address
from ztunnel_py.errors import Reason
from ztunnel_py.telemetry.filter import Level
from ztunnel_py.telemetry.log import Display, Group, logger, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.dataplane.abc import Record, Steps
    from ztunnel_py.decide.verdict import LogFields
    from ztunnel_py.state.address import SockAddr

CONNECTION_ID = "connection.id"
_LINES_OF_ONE = 2
"""Lines that one record may have."""
_access = logger("access")
_path = logger("ztunnel::path")


def wants_opened() -> bool:
    """Openings are logged."""
    return _access.enabled(Level.DEBUG)


class AccessLog:
    """Writes the lines of records; satisfies `ztunnel_py.dataplane.abc.RecordLog`."""

    def __init__(self) -> None:
        self._head: str | None = None
        self._lines: list[bytes] = []

    def room(self) -> int:
        """See the contract."""
        return _access.room() // _LINES_OF_ONE

    def begin(self) -> bool:
        """See the contract."""
        is_traced = _path.enabled(Level.DEBUG)
        self._head = None if is_traced else _access.head(Level.INFO, RecordKind.CLOSED.value)
        return self._head is not None

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
        """See the contract."""
        source, middle = _before_port(src[:-2]), _middle(log, dst, authority, is_inbound)
        sent, received = upstream_bytes, downstream_bytes
        if is_inbound:
            sent, received = received, sent
        self._lines.append(
            (
                f"{self._head}{source}{src[-2] | src[-1] << 8}{middle}{sent} bytes_recv={received} "
                f'duration="{duration_ns // 1_000_000}ms" {CONNECTION_ID}={trace}\n'
            ).encode()
        )

    def record(self, record: Record) -> None:
        """See the contract."""
        self.end()
        log_record(record)

    def end(self) -> None:
        """See the contract."""
        if self._lines:
            _access.write(self._lines)
            self._lines = []


@functools.lru_cache(maxsize=16_384)
def _before_port(packed_ip: bytes) -> str:
    """`src.addr=` and the address."""
    address = unpack_address(packed_ip + b"\0\0")
    return plain({"src.addr": Display(address or NOWHERE)})[:-1]


@functools.lru_cache(maxsize=16_384)
def _middle(log: LogFields, dst: bytes, authority: str, is_inbound: bool) -> str:
    """A line's text between its source's port and its first number."""
    address = unpack_address(dst) or NOWHERE
    fields = _constant_fields(log, address, authority, DIRECTIONS[is_inbound])
    return f" {plain(fields)} bytes_sent="


def log_record(record: Record) -> None:
    """Writes the lines of one record."""
    match record.kind:
        case RecordKind.OPENED:
            if wants_opened():
                _access.debug(record.kind.value, _fields(record) | _id(record))
            return
        case RecordKind.CLOSED if record.reason is Reason.OK:
            if _access.enabled(Level.INFO):
                fields = _fields(record) | _ending(record) | _id(record)
                _access.info(record.kind.value, fields)
        case RecordKind.CLOSED:
            error = {"error": record.reason.describe(record.detail)}
            fields = _fields(record) | _ending(record) | error | _id(record)
            _access.error(record.kind.value, fields)
        case RecordKind.DENIED:
            _access.warn(record.kind.value, _refusal(record) | _id(record))
    if _path.enabled(Level.DEBUG):
        _path.debug("path", path_fields(record))


def _fields(record: Record) -> dict[str, object]:
    """What is known from the opening on."""
    return {"src.addr": Display(record.src)} | _constant_fields(
        record.log, record.dst, record.hbone_addr, record.direction
    )


def _constant_fields(
    log: LogFields | None, dst: SockAddr, hbone_addr: str, direction: Direction
) -> dict[str, object]:
    """What follows the source's address, and may be the same for many connections."""
    source, destination = _constant(log) if log else (None, None)
    return {
        "src": source,
        "dst.addr": Display(dst),
        "dst.hbone_addr": Display(hbone_addr) if hbone_addr else None,
        "dst": destination,
        "direction": direction.value,
    }


def _ending(record: Record) -> dict[str, object]:
    up, down = record.upstream_bytes, record.downstream_bytes
    is_outbound = record.direction is Direction.OUTBOUND
    return {
        "bytes_sent": up if is_outbound else down,
        "bytes_recv": down if is_outbound else up,
        "duration": f"{_duration_ns(record.steps) // 1_000_000}ms",
    }


def _refusal(record: Record) -> dict[str, object]:
    return {
        "src.addr": Display(record.src),
        "dst.addr": Display(record.dst),
        "direction": record.direction.value,
        "error": record.reason.describe(record.detail),
    }


def _id(record: Record) -> dict[str, object]:
    return {CONNECTION_ID: Display(record.trace) if record.trace else None}


def flat_fields(record: Record) -> dict[str, str | int]:
    """What the line of an ending says, without its id: names and plain values."""
    is_early = record.kind is RecordKind.DENIED
    fields = _refusal(record) if is_early else _fields(record) | _ending(record)
    if not is_early and record.reason is not Reason.OK:
        fields["error"] = record.reason.describe(record.detail)
    flat: dict[str, str | int] = {}
    for name, value in fields.items():
        if isinstance(value, Group):
            flat |= {inner: str(text) for inner, text in value.fields.items()}
        elif value is not None:
            flat[name] = value if isinstance(value, int) else str(value)
    return flat


def _duration_ns(steps: Steps | None) -> int:
    return max(0, steps.closed_ns - steps.accepted_ns) if steps else 0


@functools.lru_cache(maxsize=8192)
def _constant(log: LogFields) -> tuple[Group, Group]:
    """The fields that are the same for every connection of a hop: source's, destination's."""
    known = [(name, value) for name, value in log._asdict().items() if value]
    source = {n.replace("_", ".", 1): v for n, v in known if n.startswith("src_")}
    destination = {n.replace("_", ".", 1): v for n, v in known if n.startswith("dst_")}
    return Group(source), Group(destination)


def path_fields(record: Record) -> Mapping[str, object]:
    """One connection's way, step by step; times are microseconds since it was accepted."""
    is_outbound = record.direction is Direction.OUTBOUND
    log = record.log
    ours = (log.src_identity if is_outbound else log.dst_identity) if log else ""
    theirs = (log.dst_identity if is_outbound else log.src_identity) if log else ""
    tunnel = {None: "", True: "reused", False: "new"}[record.tunnel_reused]
    texts: dict[str, object] = {
        "conn": f"{record.conn:016x}",
        CONNECTION_ID: Display(record.trace) if record.trace else None,
        "direction": record.direction.value,
        "src": Display(record.src),
        "original_dst": Display(record.original_dst) if record.original_dst else None,
        "workload": record.workload_name,
        "identity": ours,
        "peer_identity": theirs,
        "protocol": record.protocol,
        "next_hop": Display(record.dst) if is_outbound else None,
        "authority": record.hbone_addr,
        "tunnel": tunnel,
        "policy": record.policy,
        "app": Display(record.app) if record.app else None,
    }
    known = {name: value for name, value in texts.items() if value is not None and value != ""}
    result = "ok" if record.reason is Reason.OK else record.reason.describe(record.detail)
    return known | _times_us(record.steps) | {"result": result}


def _times_us(steps: Steps | None) -> dict[str, object]:
    if steps is None:
        return {}
    reached = {
        "accepted_us": steps.accepted_ns,
        "decided_us": steps.decided_ns,
        "tunnel_us": steps.tunnel_ns,
        "connected_us": steps.connected_ns,
        "closed_us": steps.closed_ns,
    }
    return {name: (at_ns - steps.accepted_ns) // 1000 for name, at_ns in reached.items() if at_ns}
