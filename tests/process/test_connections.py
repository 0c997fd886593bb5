# SPDX-License-Identifier: Apache-2.0
"""What one connection leaves in log and metrics, seen from outside."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.process.conftest import APPS, ROOT, redirected
from ztunnel_py.telemetry.catalogue import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns


def converse(pod: Pod, host: str, port: int, socks_port: str = "") -> str:
    """One word to an application and its answer."""
    argv = [
        sys.executable,
        str(APPS),
        "talk",
        host,
        str(port),
        *([socks_port] if socks_port else []),
    ]
    return pod.run(argv, text_in="hello\n").stdout


def _has_ended(proxy: Proxy, n_connections: int) -> bool:
    return proxy.log().count("connection complete") == n_connections


def test_a_passed_connection_is_counted_and_logged_once(
    launch: Callable[..., Proxy], pod: Pod, echo: int
) -> None:
    pod.run(["ip", "addr", "replace", "10.255.255.1/32", "dev", "lo"])
    proxy = launch(UNSTABLE_ENABLE_SOCKS5="true", LOG_FORMAT="json", RUST_LOG="info,access=debug")

    answer = converse(pod, "10.255.255.1", echo, "15080")
    proxy.wait(lambda: "connection complete" in proxy.log(), "the access line")
    metrics = proxy.metrics()
    lines = [event for event in proxy.events() if event["scope"] == "access"]

    assert answer == "connected\nhello\nclosed\n"
    assert [line["message"] for line in lines] == ["connection opened", "connection complete"]
    assert (lines[1]["bytes_sent"], lines[1]["bytes_recv"]) == (6, 6)
    assert lines[1]["src.workload"] == "cart-0"
    for family in ("connections_opened", "connections_closed"):
        (sample,) = [m for m in metrics.splitlines() if m.startswith(f"istio_tcp_{family}_total{{")]
        assert sample.endswith(" 1")
    assert 'istio_tcp_sockets_open{reporter="source"} 0' in metrics


def test_a_log_level_set_at_the_admin_port_holds_for_the_next_connection(
    launch: Callable[..., Proxy], pod: Pod, echo: int
) -> None:
    pod.run(["ip", "addr", "replace", "10.255.255.1/32", "dev", "lo"])
    proxy = launch(UNSTABLE_ENABLE_SOCKS5="true", LOG_FORMAT="json")

    for n_complete, query in ((1, "level=access=debug"), (2, "reset"), (3, "")):
        converse(pod, "10.255.255.1", echo, "15080")
        ended = partial(_has_ended, proxy, n_complete)
        proxy.wait(ended, "the access line")
        proxy.get(15000, f"/logging?{query}", "--request", "POST")
    messages = [event["message"] for event in proxy.events() if event["scope"] == "access"]

    complete = "connection complete"
    assert messages == [complete, "connection opened", complete, complete]


def test_what_is_scraped_is_what_is_documented(
    launch: Callable[..., Proxy], pod: Pod, echo: int
) -> None:
    pod.run(["ip", "addr", "replace", "10.255.255.1/32", "dev", "lo"])
    proxy = launch(UNSTABLE_ENABLE_SOCKS5="true")
    converse(pod, "10.255.255.1", echo, "15080")
    proxy.wait(lambda: "connection complete" in proxy.log(), "the access line")

    found = list(text_string_to_metric_families(proxy.metrics()))  # type: ignore[no-untyped-call]

    known = {metric.name: metric for metric in METRICS}
    assert {"istio_build", "istio_tcp_sent_bytes", "process_cpu_seconds"} <= {f.name for f in found}
    for family in found:
        metric = known[family.name]
        assert (family.type, family.unit) == (metric.type, metric.unit)
        assert {frozenset(one.labels) for one in family.samples} == {frozenset(metric.labels)}


@pytest.mark.spec("dataplane-15")
def test_a_call_to_the_proxy_itself_is_refused_at_once(
    launch: Callable[..., Proxy], pod: Pod
) -> None:
    proxy = launch()

    with redirected(pod, 15006, 15001):
        answer = converse(pod, "127.0.0.1", 15006)

    assert answer == "connected\nclosed\n"
    proxy.wait(lambda: "connection failed" in proxy.log(), "the denied line")
    (line,) = [text for text in proxy.log().splitlines() if "connection failed" in text]
    assert "dst.addr=127.0.0.1:15006" in line
    assert 'error="attempted recursive call to ourselves"' in line


@pytest.mark.spec("dataplane-109")
def test_an_early_refusal_leaves_no_traffic_series(launch: Callable[..., Proxy], pod: Pod) -> None:
    proxy = launch()

    converse(pod, "127.0.0.1", 15001)
    proxy.wait(lambda: "connection failed" in proxy.log(), "the denied line")
    metrics = proxy.metrics()

    assert "istio_tcp_connections" not in metrics
    assert 'istio_tcp_sockets_open{reporter="source"} 0' in metrics


@pytest.mark.parametrize(("asked", "is_kept"), [("false", "false"), ("true", "true")])
def test_listeners_keep_client_addresses_as_asked(
    asked: str, is_kept: str, launch: Callable[..., Proxy]
) -> None:
    proxy = launch(ENABLE_ORIG_SRC=asked)

    proxy.wait(lambda: 'component="outbound"' in proxy.log(), "the listeners")
    (line,) = [text for text in proxy.log().splitlines() if 'component="inbound"' in text]

    assert line.endswith(f"transparent={is_kept}")


def test_stdout_carries_one_line_per_event(launch: Callable[..., Proxy], pod: Pod) -> None:
    proxy = launch()

    converse(pod, "127.0.0.1", 15001)
    proxy.wait(lambda: "connection failed" in proxy.log(), "the denied line")

    assert all(line.count("\t") >= 3 for line in proxy.log().splitlines())


def test_the_program_needs_no_working_directory_of_its_own(pod: Pod) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ztunnel_py", "help"],
        cwd="/",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )

    assert "\n  proxy " in ended.stdout
