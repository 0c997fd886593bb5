# SPDX-License-Identifier: Apache-2.0
"""A collector that takes OTLP over HTTP: `python -m tests.support.otlp PORT` prints what comes."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

Json = dict[str, Any]


class Collector:
    """Listens on loopback until it is closed.

    Args:
        status: what it answers.
        hangs: it answers nothing before it is closed.
    """

    def __init__(self, status: int = 200, *, hangs: bool = False, port: int = 0) -> None:
        self.spans: list[Json] = []
        self.logs: list[Json] = []
        self.n_requests = 0
        self._status = status
        self._may_answer = threading.Event()
        if not hangs:
            self._may_answer.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer._take(self.path, body)
                outer._may_answer.wait()
                self.send_response(outer._status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, path: str, body: bytes) -> None:
        self.n_requests += 1
        if path == "/v1/traces":
            for of in ExportTraceServiceRequest.FromString(body).resource_spans:
                who = _plain(of.resource.attributes)
                self.spans += [_span(one) | {"who": who} for s in of.scope_spans for one in s.spans]
        elif path == "/v1/logs":
            for logs in ExportLogsServiceRequest.FromString(body).resource_logs:
                who = _plain(logs.resource.attributes)
                found = (one for scope in logs.scope_logs for one in scope.log_records)
                self.logs += [_log(one) | {"who": who} for one in found]


def _span(one: Any) -> Json:
    return {
        "trace": one.trace_id.hex(),
        "span": one.span_id.hex(),
        "parent": one.parent_span_id.hex(),
        "name": one.name,
        "kind": one.kind,
        "begun": one.start_time_unix_nano,
        "ended": one.end_time_unix_nano,
        "events": [event.name for event in one.events],
        "status": one.status.code,
        "said": one.status.message,
        "attributes": _plain(one.attributes),
    }


def _log(one: Any) -> Json:
    return {
        "trace": one.trace_id.hex(),
        "span": one.span_id.hex(),
        "severity": one.severity_text,
        "body": one.body.string_value,
        "attributes": _plain(one.attributes),
    }


def _plain(attributes: Iterable[KeyValue]) -> Json:
    return {
        one.key: one.value.int_value if one.value.HasField("int_value") else one.value.string_value
        for one in attributes
    }


def main() -> None:
    """Prints `ready`, then for each line of its input all that has come."""
    collector = Collector(port=int(sys.argv[1]))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({"spans": collector.spans, "logs": collector.logs}), flush=True)
    collector.close()


if __name__ == "__main__":
    main()
