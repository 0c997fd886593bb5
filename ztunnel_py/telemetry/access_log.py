# SPDX-License-Identifier: Apache-2.0
"""Access log: one line for a connection's opening, end or early refusal.

Fields, their order and the levels are ztunnel's. The byte counts are the application's view: what
the local application sent is `bytes_sent`. Metrics count by direction instead (client to upstream
is received), so the two agree on one side of the mesh only. Source: spec dataplane, section 12.4.

`ztunnel::path` at debug is ours: the steps of one connection and when it reached each, for people
who ask where the time went.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ztunnel_py.dataplane.abc import Direction, RecordKind
from ztunnel_py.errors import Reason
from ztunnel_py.telemetry.filter import Level
from ztunnel_py.telemetry.log import Display, Group, logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.dataplane.abc import Record, Steps
    from ztunnel_py.decide.verdict import LogFields

_access = logger("access")
_path = logger("ztunnel::path")


def log_record(record: Record) -> None:
    """Writes the lines of one record."""
    match record.kind:
        case RecordKind.OPENED:
            if _access.enabled(Level.DEBUG):
                _access.debug(record.kind.value, _fields(record))
            return
        case RecordKind.CLOSED if record.reason is Reason.OK:
            _access.info(record.kind.value, _fields(record) | _ending(record))
        case RecordKind.CLOSED:
            error = record.reason.describe(record.detail)
            _access.error(record.kind.value, _fields(record) | _ending(record) | {"error": error})
        case RecordKind.DENIED:
            _access.warn(record.kind.value, _refusal(record))
    if _path.enabled(Level.DEBUG):
        _path.debug("path", path_fields(record))


def _fields(record: Record) -> dict[str, object]:
    """What is known from the opening on."""
    source, destination = _constant(record.log) if record.log else (None, None)
    return {
        "src.addr": Display(record.src),
        "src": source,
        "dst.addr": Display(record.dst),
        "dst.hbone_addr": Display(record.hbone_addr) if record.hbone_addr else None,
        "dst": destination,
        "direction": record.direction.value,
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
