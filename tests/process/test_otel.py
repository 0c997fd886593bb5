# SPDX-License-Identifier: Apache-2.0
"""Exports to OpenTelemetry, of a running proxy."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process.test_log_output import served

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import Program, Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns
ENDPOINT = "http://127.0.0.1:4318"
SILENT = """
import socket, sys
server = socket.create_server(("127.0.0.1", 4318))
print("ready", flush=True)
sys.stdin.read()
"""
WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from ztunnel_py.__main__ import run
sys.exit(run(["proxy"]))
"""


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_connection_is_exported_under_the_id_that_its_log_line_has(
    engine: str,
    launch: Callable[..., Proxy],
    programs: Callable[..., Program],
    pod: Pod,
    echo: int,
) -> None:
    collector = programs("-m", "tests.support.otlp", "4318")
    assert collector.line() == "ready"
    proxy = launch(
        OTEL_EXPORTER_OTLP_ENDPOINT=ENDPOINT, LOG_FORMAT="json", ZTUNNEL_DATAPLANE=engine
    )

    answered = served(pod, echo, 3)
    proxy.signal(signal.SIGTERM)
    status = proxy.exit_status()
    collector.tell("show")
    exported = json.loads(collector.line())

    logged = {one["connection.id"] for one in proxy.events() if one["scope"] == "access"}
    assert (status, answered, len(logged)) == (0, 3, 3)
    assert {span["trace"] for span in exported["spans"]} == logged
    assert {line["trace"] for line in exported["logs"]} == logged
    assert exported["spans"][0]["attributes"]["src.workload"] == "cart-0"


def test_a_collector_that_is_silent_holds_up_neither_traffic_nor_the_end(
    launch: Callable[..., Proxy], programs: Callable[..., Program], pod: Pod, echo: int
) -> None:
    assert programs("-c", SILENT).line() == "ready"
    proxy = launch(OTEL_EXPORTER_OTLP_ENDPOINT=ENDPOINT)

    answered = served(pod, echo, 20)
    metrics = proxy.metrics()
    proxy.signal(signal.SIGTERM)

    assert proxy.exit_status(5) == 0
    assert answered == 20
    assert 'ztunnel_py_otel_records_total{outcome="exported"} 0' in metrics
    assert "the collector did not take everything" in proxy.log()


def test_exports_without_the_library_are_refused_at_the_start(
    launch: Callable[..., Proxy],
) -> None:
    proxy = launch(
        argv=[sys.executable, "-c", WITHOUT], ready=False, OTEL_EXPORTER_OTLP_ENDPOINT=ENDPOINT
    )

    assert proxy.exit_status() == 1
    assert "install ztunnel-py[otel], or set OTEL_SDK_DISABLED=true" in proxy.log()
    assert "opentelemetry" in proxy.log()


def test_without_being_asked_for_the_library_is_not_even_loaded(
    launch: Callable[..., Proxy],
) -> None:
    proxy = launch(argv=[sys.executable, "-c", WITHOUT])

    assert "ztunnel_py_otel" not in proxy.metrics()
