# SPDX-License-Identifier: Apache-2.0
"""The metrics text."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ztunnel_py.dataplane.counters import SlotCounts
from ztunnel_py.decide.verdict import TrafficLabels
from ztunnel_py.errors import Flag
from ztunnel_py.telemetry import catalogue, metrics, usage
from ztunnel_py.telemetry.exposition import render
from ztunnel_py.xds.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LABELS = TrafficLabels("source", source_workload='a "b"', destination_service="web.default")
_NAMES = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
]


_PROCESS = [
    "process_open_fds",
    "process_max_fds",
    "process_cpu_seconds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
]


class _Plane:
    """Counters as an engine shows them."""

    def __init__(
        self,
        slots: Mapping[TrafficLabels, SlotCounts] | None = None,
        events: Mapping[str, int] | None = None,
    ) -> None:
        self._slots, self._events = slots or {}, events or {}

    def slots(self) -> Mapping[TrafficLabels, SlotCounts]:
        return self._slots

    def events(self) -> Mapping[str, int]:
        return self._events


def _text(plane: _Plane) -> str:
    used = usage.families(usage.read())
    return render([*used, metrics.build("1.99"), *metrics.traffic(plane)])


def _parsed(text: str) -> Iterator[Any]:
    """Families as a foreign parser reads them."""
    return text_string_to_metric_families(text)  # type: ignore[no-untyped-call, no-any-return]


def _values(text: str) -> dict[tuple[str, str], float]:
    """Samples that carry `response_flags`, by name and flag."""
    return {
        (sample.name, sample.labels["response_flags"]): sample.value
        for family in _parsed(text)
        for sample in family.samples
        if "response_flags" in sample.labels
    }


@pytest.mark.spec("dataplane-113")
def test_families_without_samples_are_absent() -> None:
    names = [family.name for family in _parsed(_text(_Plane()))]

    assert names == [*_PROCESS, "istio_build"]


def test_build_names_the_istio_version() -> None:
    assert '\nistio_build{component="ztunnel",tag="1.99"} 1\n' in _text(_Plane())


def test_text_ends_with_eof() -> None:
    assert _text(_Plane()).endswith("\n# EOF\n")


def test_labels_keep_their_order_and_empty_ones_are_unknown() -> None:
    text = _text(_Plane({_LABELS: SlotCounts(opened=1)}))

    line = next(x for x in text.splitlines() if x.startswith("istio_tcp_connections_opened_total{"))
    inside = line.partition("{")[2].rpartition("}")[0]
    labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', inside))
    said = {
        "reporter": "source",
        "source_workload": 'a \\"b\\"',
        "destination_service": "web.default",
        "request_protocol": "tcp",
        "response_flags": "-",
    }
    assert list(labels) == _NAMES
    assert labels == dict.fromkeys(_NAMES, "unknown") | said


def test_closed_and_failed_carry_the_flag_and_the_rest_does_not() -> None:
    counts = SlotCounts(opened=5, received=11, sent=22, closed={Flag.NONE: 2, Flag.DENY: 3})

    values = _values(_text(_Plane({_LABELS: counts})))

    assert values == {
        ("istio_tcp_connections_opened_total", "-"): 5,
        ("istio_tcp_connections_closed_total", "-"): 2,
        ("istio_tcp_connections_closed_total", "DENY"): 3,
        ("istio_tcp_received_bytes_total", "-"): 11,
        ("istio_tcp_sent_bytes_total", "-"): 22,
        ("istio_tcp_connections_failed_total", "DENY"): 3,
    }


def test_label_set_without_a_connection_has_no_series() -> None:
    assert "istio_tcp" not in _text(_Plane({_LABELS: SlotCounts()}))


def test_open_sockets_are_the_difference_of_accepted_and_closed() -> None:
    events = {
        "sockets_opened_source": 7,
        "sockets_closed_source": 7,
        "sockets_opened_destination": 2,
    }

    text = _text(_Plane(events=events))

    assert '\nistio_tcp_sockets_open{reporter="source"} 0\n' in text
    assert '\nistio_tcp_sockets_open{reporter="destination"} 2\n' in text


def test_events_of_the_engine_are_counted_by_name() -> None:
    text = _text(_Plane(events={"accept_emfile": 3}))

    assert '\nztunnel_py_events_total{event="accept_emfile"} 3\n' in text


def test_help_says_unstable_except_for_the_stable_families() -> None:
    counts = SlotCounts(opened=1, closed={Flag.CONNECT: 1})
    text = _text(_Plane({_LABELS: counts}, {"sockets_opened_source": 1}))

    stable = [
        line.split()[2]
        for line in text.splitlines()
        if line.startswith("# HELP") and "unstable" not in line
    ]
    assert stable == [
        *_PROCESS,
        "istio_build",
        "istio_tcp_connections_opened",
        "istio_tcp_received_bytes",
        "istio_tcp_sent_bytes",
        "istio_tcp_connections_closed",
    ]


def test_help_ends_in_a_full_stop_except_for_the_process() -> None:
    text = _text(_Plane({_LABELS: SlotCounts(opened=1)}))

    without = [
        line.split()[2]
        for line in text.splitlines()
        if line.startswith("# HELP") and not line.endswith(".")
    ]
    assert without == _PROCESS


def test_what_the_control_plane_sends_is_counted_by_type_and_ending() -> None:
    counts = Counts({"Complete": 2, "Error": 1}, {"t/a": 3}, {"t/a": 1000})

    text = render(metrics.discovery(counts, is_connected=True))

    assert 'istio_xds_connection_terminations_total{reason="Complete"} 2' in text
    assert 'istio_xds_message_total{url="t/a"} 3' in text
    assert 'istio_xds_message_bytes_total{url="t/a"} 1000' in text
    assert "ztunnel_py_xds_connected 1" in text
    assert "# UNIT istio_xds_message_bytes bytes" in text
    assert {family.type for family in _parsed(text)} == {"counter", "gauge"}


def test_a_unit_is_told_where_a_name_ends_with_one() -> None:
    text = _text(_Plane({_LABELS: SlotCounts(opened=1)}))

    units = [line.split()[2:] for line in text.splitlines() if line.startswith("# UNIT")]
    assert units == [
        ["process_cpu_seconds", "seconds"],
        ["process_resident_memory_bytes", "bytes"],
        ["process_start_time_seconds", "seconds"],
        ["istio_tcp_received_bytes", "bytes"],
        ["istio_tcp_sent_bytes", "bytes"],
    ]


def test_the_process_tells_what_it_uses() -> None:
    before = time.process_time()
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]

    found = usage.read()

    for fd in held:
        os.close(fd)
    assert found.open_fds - usage.read().open_fds == 3
    assert before <= found.cpu_s <= time.process_time()
    assert 1 << 20 < found.resident_bytes < 1 << 40
    assert 0 < time.time() - found.started < 24 * 3600


def test_traffic_has_the_labels_of_the_catalogue() -> None:
    assert list(catalogue.TRAFFIC_LABELS) == _NAMES


@pytest.mark.parametrize("metric", catalogue.METRICS, ids=lambda metric: metric.name)
def test_every_label_is_explained(metric: catalogue.Metric) -> None:
    assert set(metric.labels) <= set(catalogue.LABELS)
