# SPDX-License-Identifier: Apache-2.0
"""Connections for OpenTelemetry, over OTLP/HTTP: each a log record, as its access line, and a span.

The trace id is the connection's id, so the spans of client's and server's node form one trace: the
server's is a child of the client's. What the collector is and how it is reached is said by the
standard variables, which the SDK reads. A thread of its own converts and sends; it has a bounded
queue, and what does not fit is counted and left out: a collector that hangs harms nobody.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections import Counter, deque
from typing import TYPE_CHECKING

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from ztunnel_py.dataplane.abc import Direction, RecordKind
from ztunnel_py.errors import Reason
from ztunnel_py.telemetry.access_log import flat_fields
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ztunnel_py.dataplane.abc import Record, RecordLog
    from ztunnel_py.decide.verdict import LogFields

LIMIT = 4096
"""Records that wait at most."""
BATCH = 256
"""Records of one request."""
GATHER_S = 1.0
"""How long records may wait for others, seconds."""
FLUSH_S = 1.0
"""How long an exit waits, seconds."""
EXPORTED, DROPPED, FAILED = "exported", "dropped", "failed"
"""What becomes of a record: sent, not queued, or not accepted."""
_SCOPE = InstrumentationScope("ztunnel-py")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_log = logger("ztunnel::otel")


class Exports:
    """A queue of records and the thread that sends them.

    Args:
        signals: `TRACES`, `LOGS` or both; see config_otel.py.
        attributes: who we are, unless the environment says otherwise.
    """

    def __init__(self, signals: Collection[str], attributes: Mapping[str, str]) -> None:
        found = OTELResourceDetector().detect()
        self._resource = Resource(dict(attributes)).merge(found)
        self._complaints = _Complaints()
        self._senders: list[Callable[[Sequence[_Ended]], bool]] = []
        self._exporters: list[OTLPSpanExporter | OTLPLogExporter] = []
        if "TRACES" in signals:
            spans = OTLPSpanExporter()
            self._exporters.append(spans)
            self._senders.append(lambda some: spans.export(list(map(self._span, some))).value == 0)
        if "LOGS" in signals:
            logs = OTLPLogExporter()
            self._exporters.append(logs)
            self._senders.append(lambda some: logs.export(list(map(self._line, some))).value == 0)
        self.counts: Counter[str] = Counter({EXPORTED: 0, DROPPED: 0, FAILED: 0})
        self._queue: deque[_Ended] = deque()
        self._is_closing = threading.Event()
        self._is_failing = False
        # A daemon: a collector that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="otel", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queues the record of an ending, or counts it as dropped. Never waits."""
        if record.kind is RecordKind.OPENED:
            return
        if len(self._queue) >= LIMIT:
            self.counts[DROPPED] += 1
            return
        self._queue.append(_Ended(record))

    def around(self, log: RecordLog) -> RecordLog:
        """A log that exports what it is told."""
        return _ExportedLog(log, self)

    def close(self) -> None:
        """Sends what is queued, for at most `FLUSH_S`."""
        self._is_closing.set()
        self._thread.join(FLUSH_S)
        if self._thread.is_alive():
            _log.warn("the collector did not take everything", {"records": len(self._queue)})
        for exporter in self._exporters:
            exporter.shutdown()  # type: ignore[no-untyped-call] # no more attempts

    def _run(self) -> None:
        while True:
            is_last = self._is_closing.wait(GATHER_S)
            while self._queue:
                some = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._send(some)
            if is_last:
                return

    def _send(self, some: list[_Ended]) -> None:
        try:
            results = [send(some) for send in self._senders]  # each, whatever becomes of others
            is_sent = all(results)
        except Exception:  # whatever it is, the next batch may fare better
            is_sent = False
            self._complaints.latest = traceback.format_exc()
        self.counts[EXPORTED if is_sent else FAILED] += len(some)
        if not is_sent and not self._is_failing:
            _log.warn("cannot export to OpenTelemetry", {"error": self._complaints.latest})
        elif is_sent and self._is_failing:
            _log.info("exporting to OpenTelemetry again", {"failed": self.counts[FAILED]})
        self._is_failing = not is_sent

    def _span(self, ended: _Ended) -> ReadableSpan:
        record = ended.record
        is_outbound = record.direction is Direction.OUTBOUND
        return ReadableSpan(
            f"{record.direction.value} connection",
            SpanContext(ended.trace, ended.span, is_remote=False, trace_flags=_SAMPLED),
            SpanContext(ended.trace, ended.parent, is_remote=True) if ended.parent else None,
            self._resource,
            attributes=flat_fields(record),
            events=ended.events(),
            kind=SpanKind.CLIENT if is_outbound else SpanKind.SERVER,
            status=Status(StatusCode.ERROR, ended.error) if ended.error else Status(),
            start_time=ended.begun_ns,
            end_time=ended.ended_ns,
            instrumentation_scope=_SCOPE,
        )

    def _line(self, ended: _Ended) -> ReadableLogRecord:
        record = ended.record
        match record.kind, ended.error:
            case RecordKind.DENIED, _:
                severity = SeverityNumber.WARN
            case _, "":
                severity = SeverityNumber.INFO
            case _:
                severity = SeverityNumber.ERROR
        line = LogRecord(
            timestamp=ended.ended_ns,
            trace_id=ended.trace,
            span_id=ended.span,
            trace_flags=_SAMPLED,
            severity_text=severity.name,
            severity_number=severity,
            body=record.kind.value,
            attributes=flat_fields(record),
        )
        return ReadableLogRecord(line, self._resource, _SCOPE)


class _ExportedLog:
    """A log whose records are exported, too."""

    def __init__(self, log: RecordLog, exports: Exports) -> None:
        self._log = log
        self._exports = exports

    def room(self) -> int:
        """See the contract; exports take no room, they drop."""
        return self._log.room()

    def begin(self) -> bool:
        """See the contract; every record is wanted whole."""
        self._log.begin()
        return False

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
        """Not called: see `begin`."""
        raise NotImplementedError

    def record(self, record: Record) -> None:
        """See the contract."""
        self._log.record(record)
        self._exports.put(record)

    def end(self) -> None:
        """See the contract."""
        self._log.end()


class _Ended:
    """A record, when it was in Unix nanoseconds, and the ids of its span."""

    __slots__ = (
        *("_offset_ns", "begun_ns", "ended_ns", "error"),
        *("parent", "record", "span", "trace"),
    )

    def __init__(self, record: Record) -> None:
        now = time.time_ns()
        self._offset_ns = now - time.monotonic_ns()
        self.record = record
        steps = record.steps
        self.ended_ns = steps.closed_ns + self._offset_ns if steps and steps.closed_ns else now
        self.begun_ns = steps.accepted_ns + self._offset_ns if steps else self.ended_ns
        sent = int(record.span, 16) if record.span else 0
        is_outbound = record.direction is Direction.OUTBOUND
        self.trace = int(record.trace, 16)
        self.parent = 0 if is_outbound else sent
        self.span = (sent if is_outbound else 0) or random.getrandbits(64) or 1
        self.error = "" if record.reason is Reason.OK else record.reason.describe(record.detail)

    def events(self) -> list[Event]:
        """What it reached in between."""
        steps = self.record.steps
        if steps is None:
            return []
        reached = {
            "decided": steps.decided_ns,
            "tunnel": steps.tunnel_ns,
            "connected": steps.connected_ns,
        }
        return [Event(name, None, at + self._offset_ns) for name, at in reached.items() if at]


class _Complaints(logging.Handler):
    """Keeps what the SDK and its HTTP library complain of from standard error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.latest = ""
        for name in ("opentelemetry", "urllib3"):
            source = logging.getLogger(name)
            source.propagate = False
            source.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        self.latest = record.getMessage()
