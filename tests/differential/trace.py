# SPDX-License-Identifier: Apache-2.0
"""What can be seen of a scenario, in a form that two engines must agree on.

Where engines may differ, what they differ in is left out here and nowhere else:

* How bytes are cut into frames, and whether END_STREAM comes with the last of them or behind it:
  only bytes and ends are seen.
* Ports, trace ids, times, and the ids of connections.
* The words of an HTTP/2 failure: each library has its own. Its reason, status and flag are seen.
* Who refuses a server that is somebody else, and when: the native engine inside the handshake, so
  that the server never has a tunnel; the reference right after it. Neither sends a request.
* What the TLS library says of a handshake that failed.
* Bytes that never left: the reference counts them when it takes them for a stream without window,
  the native engine when they leave. Nobody counts more than was read at the other end of a stream.
  The reference also counts what it wrote to a socket that had been reset.
* Whether a tunnel that is ended at once says GOAWAY NO_ERROR first (ends.py).
* When a tunnel that drains closes behind its last stream, if that was reset by its other end: the
  reference waits for the application (ends.py).
* What is read of a socket that was reset with bytes on their way, how much that was, and whether
  its stream is reset behind its END_STREAM: there is no need to if the other end is known by then.
* Whether a socket ends by FIN or RST while bytes of it wait for a stream without window. The native
  engine leaves them in the kernel, and who closes with bytes unread resets; the reference has read.
* Whether a stream that GOAWAY disowned is also reset (ends.py).
* Whether a tunnel that never was had been in the pool: the native engine says no, the reference
  nothing.
* The steps of a `connection opened`, and of one without a decision: the reference goes on filling
  in the former, and says of the latter that it was decided.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.differential.ends import StreamEnd, TcpEnd
from tests.support.apps import FIN, RST
from tests.support.frames import CANCEL
from ztunnel_py.dataplane.abc import RecordKind
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.differential.ends import EndPoint
    from ztunnel_py.dataplane.abc import Record
    from ztunnel_py.dataplane.counters import SlotCounts
    from ztunnel_py.decide.verdict import TrafficLabels

EVENTS = (
    "sockets_opened_source",
    "sockets_opened_destination",
    "decision_timeouts",
    "ping_timeouts",
    "over_budget",
)
_WORDED_BY_LIBRARIES = {
    Reason.H2,
    Reason.H2_START,
    Reason.TLS_HANDSHAKE,
    Reason.SEND,
    Reason.RECEIVE,
}
_PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY_PORT_AT = 24  # of an IPv4 client
_PORT = re.compile(r":\d+(?=\"|$)")


@dataclass
class Trace:
    """One line after each step, and what is known at the end."""

    lines: list[str] = field(default_factory=list)

    def add(self, label: str, *facts: str) -> None:
        """What is seen after a step."""
        self.lines.append(" | ".join([label, *facts]))


def seen(name: str, end: EndPoint | None, other: EndPoint | None) -> str:
    """Bytes and ending of an end."""
    if end is None:
        return f"{name} -"
    data = end.received
    if data.startswith(_PROXY_V2):
        data = data[:_PROXY_PORT_AT] + bytes(2) + data[_PROXY_PORT_AT + 2 :]
    ending = end.ending
    if has_lost(other):
        data = b""
        ending = ending.removesuffix(f", reset {CANCEL}")
    digest = hashlib.sha256(data).hexdigest()[:6] if data else ""
    if isinstance(end, TcpEnd) and isinstance(other, StreamEnd) and ending in (FIN, RST):
        ending = ending if end.sent == len(other.received) else "ended"
    return f"{name} {len(data)} {digest} {ending}".rstrip()


def headers(found: list[tuple[str, str]]) -> str:
    """Headers without order, ports and trace ids."""
    known = []
    for name, value in found:
        if name == "traceparent":
            value = "a trace" if re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", value) else value
        elif name == "forwarded":
            value = _PORT.sub(":port", value)
        known.append(f"{name}: {value}")
    return "; ".join(sorted(known))


def record(one: Record, near: EndPoint | None, far: EndPoint | None) -> str:
    """A record without ids, ports and times."""
    detail = "" if one.reason in _WORDED_BY_LIBRARIES else _PORT.sub(":port", one.detail)
    if one.reason is Reason.IO and "identity" in detail:
        detail = "somebody else"
    has_steps = one.kind is not RecordKind.OPENED and one.reason is not Reason.DECISION_TIMEOUT
    steps = one.steps if has_steps else None
    reached = (
        []
        if steps is None
        else [
            name
            for name in ("accepted", "decided", "tunnel", "connected", "closed")
            if getattr(steps, f"{name}_ns")
        ]
    )
    is_reused = one.tunnel_reused if "tunnel" in reached else None
    up = written(one.upstream_bytes, far, near)
    down = written(one.downstream_bytes, near, far)
    return (
        f"{one.kind.value}: {one.workload} {one.direction.value} {one.reason.name} {detail!r} "
        f"up {up} down {down} {one.protocol} "
        f"authority {_PORT.sub(':port', one.hbone_addr)!r} reused {is_reused} "
        f"id {bool(re.fullmatch('[0-9a-f]{32}', one.trace))} span {len(one.span)} "
        f"app {one.app is not None} log {one.log is not None} reached {reached}"
    )


def has_lost(end: EndPoint | None) -> bool:
    """What the other end reads of it is a matter of luck."""
    return isinstance(end, TcpEnd) and end.may_have_lost


def written(count: int, end: EndPoint | None, source: EndPoint | None) -> int:
    """Bytes that left."""
    if has_lost(source):
        return 0
    is_bounded = isinstance(end, StreamEnd) or (end is not None and end.ending == "left")
    return min(count, len(end.received)) if end is not None and is_bounded else count


def slots(
    counts: Mapping[TrafficLabels, SlotCounts], near: EndPoint | None, far: EndPoint | None
) -> str:
    """Counters by label set."""
    return "; ".join(
        f"{labels.reporter}: opened {one.opened} received {written(one.received, far, near)} "
        f"sent {written(one.sent, near, far)} "
        f"closed { {flag.value: n for flag, n in one.closed.items()} }"
        for labels, one in counts.items()
    )
