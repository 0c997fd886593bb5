# SPDX-License-Identifier: Apache-2.0
"""Exports to a collector that takes, hangs, or refuses them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.otlp import Collector
from ztunnel_py import config_otel
from ztunnel_py.dataplane.abc import Direction, Record, RecordKind, Steps
from ztunnel_py.decide.verdict import LogFields
from ztunnel_py.errors import ConfigError, Reason
from ztunnel_py.state.address import SockAddr
from ztunnel_py.telemetry import otel
from ztunnel_py.telemetry.access_log import AccessLog
from ztunnel_py.telemetry.otel import Exports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.telemetry.conftest import LogFile

ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def record(**changes: Any) -> Record:
    parts: dict[str, Any] = {
        "kind": RecordKind.CLOSED,
        "conn": 1,
        "workload": "w",
        "direction": Direction.OUTBOUND,
        "src": SockAddr.parse("10.1.0.5:40000"),
        "dst": SockAddr.parse("10.1.0.7:15008"),
        "reason": Reason.OK,
        "hbone_addr": "10.1.0.7:8080",
        "upstream_bytes": 11,
        "downstream_bytes": 22,
        "log": LogFields(src_workload="cart-1", dst_service="prices.shop"),
        "steps": Steps(1_000_000, 2_000_000, 3_000_000, 4_000_000, 15_000_000),
        "trace": ID,
        "span": SPAN,
    }
    return Record(**parts | changes)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Collector], Exports]]:
    """Begins to export to a collector; both are closed afterwards."""
    monkeypatch.setattr(otel, "GATHER_S", 0.01)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    opened: list[tuple[Exports, Collector]] = []

    def export(collector: Collector) -> Exports:
        monkeypatch.setenv(ENDPOINT, collector.url)
        exports = Exports({"TRACES", "LOGS"}, {"service.name": "ztunnel", "k8s.node.name": "n1"})
        opened.append((exports, collector))
        return exports

    yield export
    for exporting, collector in opened:
        collector.close()
        exporting.close()


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_ending_becomes_a_span_and_a_log_record(
    exports: Callable[[Collector], Exports],
) -> None:
    exporting = exports(collector := Collector())
    before = time.time_ns()
    now = time.monotonic_ns()
    steps = Steps(now, now + 1000, now + 2000, now + 3000, now + 14_000_000)

    exporting.put(record(kind=RecordKind.OPENED))
    exporting.put(record(steps=steps))
    exporting.close()

    (span,), (line,) = collector.spans, collector.logs
    assert (span["trace"], span["span"], span["parent"]) == (ID, SPAN, "")
    assert (span["name"], span["kind"], span["status"]) == ("outbound connection", 3, 0)
    assert span["events"] == ["decided", "tunnel", "connected"]
    assert abs(span["begun"] - before) < 1e9
    assert span["ended"] - span["begun"] == 14_000_000
    assert span["who"] == {"service.name": "ztunnel", "k8s.node.name": "n1"}
    assert span["attributes"] == {
        "src.addr": "10.1.0.5:40000",
        "src.workload": "cart-1",
        "dst.addr": "10.1.0.7:15008",
        "dst.hbone_addr": "10.1.0.7:8080",
        "dst.service": "prices.shop",
        "direction": "outbound",
        "bytes_sent": 11,
        "bytes_recv": 22,
        "duration": "14ms",
    }
    assert (line["severity"], line["body"]) == ("INFO", "connection complete")
    same = ("trace", "span", "attributes", "who")
    assert [line[name] for name in same] == [span[name] for name in same]
    assert exporting.counts == {"exported": 1, "dropped": 0, "failed": 0}


def test_the_spans_of_both_sides_are_parent_and_child(
    exports: Callable[[Collector], Exports],
) -> None:
    exporting = exports(collector := Collector())

    exporting.put(record())
    exporting.put(record(direction=Direction.INBOUND))
    exporting.put(record(direction=Direction.INBOUND, span=""))
    exporting.close()

    client, server, alone = collector.spans
    assert client["trace"] == server["trace"]
    assert server["parent"] == client["span"]
    assert len({client["span"], server["span"], alone["span"]}) == 3
    assert (server["kind"], alone["parent"]) == (2, "")


@pytest.mark.parametrize(
    ("kind", "severity", "body"),
    [
        (RecordKind.CLOSED, "ERROR", "connection complete"),
        (RecordKind.DENIED, "WARN", "connection failed"),
    ],
)
def test_what_failed_says_why(
    exports: Callable[[Collector], Exports], kind: RecordKind, severity: str, body: str
) -> None:
    exporting = exports(collector := Collector())

    exporting.put(record(kind=kind, reason=Reason.APP_CONNECT, detail="refused"))
    exporting.close()

    (span,), (line,) = collector.spans, collector.logs
    assert (line["severity"], line["body"]) == (severity, body)
    assert span["status"] == 2
    assert span["said"] == span["attributes"]["error"] == line["attributes"]["error"]
    assert span["said"].endswith("refused")


def test_a_collector_that_hangs_costs_neither_time_nor_memory(
    exports: Callable[[Collector], Exports],
) -> None:
    exporting = exports(collector := Collector(hangs=True))
    exporting.put(record())
    wait(lambda: collector.n_requests == 1)
    begun = time.monotonic()

    for _ in range(otel.LIMIT + 100):
        exporting.put(record())
    took_s = time.monotonic() - begun
    exporting.close()
    closed_s = time.monotonic() - begun - took_s

    assert took_s < 1
    assert exporting.counts["dropped"] == 100
    assert closed_s < otel.FLUSH_S + 1


def test_a_collector_that_refuses_is_named_once_and_its_losses_are_counted(
    exports: Callable[[Collector], Exports], log_file: LogFile
) -> None:
    log_file.start("info")
    exporting = exports(Collector(status=400))

    for count in (1, 2):
        exporting.put(record())
        wait(lambda count=count: exporting.counts["failed"] == count)  # type: ignore[misc]
    lines = log_file.lines()

    assert [line.split("\t")[2:4] for line in lines] == [["otel", "cannot export to OpenTelemetry"]]
    assert "400" in lines[0]


def test_a_collector_that_is_gone_is_not_tried_again_after_the_end(
    exports: Callable[[Collector], Exports], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    before = set(threading.enumerate())
    collector = Collector()
    collector.close()
    exporting = exports(collector)
    exporting.put(record())

    exporting.close()

    wait(lambda: set(threading.enumerate()) <= before)


def test_resource_attributes_of_the_environment_win(
    exports: Callable[[Collector], Exports], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    exporting = exports(collector := Collector())

    exporting.put(record())
    exporting.close()

    assert collector.spans[0]["who"] == {
        "service.name": "mine",
        "k8s.node.name": "n1",
        "deployment.environment": "test",
    }


def test_the_log_goes_on_as_it_did(
    exports: Callable[[Collector], Exports], log_file: LogFile
) -> None:
    exporting = exports(collector := Collector())
    log_file.start("info")
    log = exporting.around(AccessLog())

    is_short = log.begin()
    log.record(record())
    log.end()
    exporting.close()

    assert not is_short
    assert ID in log_file.lines()[0]
    assert len(collector.spans) == 1


@pytest.mark.parametrize(
    ("environ", "signals"),
    [
        ({}, set()),
        ({ENDPOINT: ""}, set()),
        ({ENDPOINT: "http://c:4318"}, {"TRACES", "LOGS"}),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "True"}, set()),
        ({ENDPOINT: "http://c:4318", "OTEL_LOGS_EXPORTER": "none"}, {"TRACES"}),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://c/v1/logs"}, {"LOGS"}),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, {"TRACES"}),
    ],
)
def test_the_environment_says_what_is_exported(environ: dict[str, str], signals: set[str]) -> None:
    assert config_otel.signals(environ) == signals


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({ENDPOINT: "c:4318"}, ENDPOINT),
        ({ENDPOINT: "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "_PROTOCOL"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
    ],
)
def test_what_cannot_be_done_is_refused(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_otel.signals(environ)
