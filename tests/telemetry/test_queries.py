# SPDX-License-Identifier: Apache-2.0
"""Metrics of DNS queries, as a foreign parser reads them."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ztunnel_py.dns.counts import Counts, Labels
from ztunnel_py.telemetry.exposition import render
from ztunnel_py.telemetry.queries import families

KNOWN, UNKNOWN = Labels("a", "udp", "cart", "v1"), Labels("aaaa", "tcp")


def scraped(counts: Counts) -> dict[str, float]:
    """Samples by name and labels in the order of the exposition."""
    return {
        f"{sample.name} {','.join(f'{k}={v}' for k, v in sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(render(families(counts)))  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def test_queries_are_counted_by_type_transport_and_client() -> None:
    counts = Counts()
    counts.requests[KNOWN] += 3
    counts.requests[UNKNOWN] += 1
    counts.forwarded[KNOWN] += 2
    counts.failed[KNOWN] += 1

    known, unknown = (
        ",".join(f"{name}={value or 'unknown'}" for name, value in labels._asdict().items())
        for labels in (KNOWN, UNKNOWN)
    )
    assert known.startswith("request_query_type=a,request_protocol=udp,source_canonical_service=")
    assert scraped(counts) == {
        f"istio_dns_requests_total {known}": 3,
        f"istio_dns_requests_total {unknown}": 1,
        f"istio_dns_upstream_requests_total {known}": 2,
        f"istio_dns_upstream_failures_total {known}": 1,
    }


def test_durations_are_counted_up_to_each_bound() -> None:
    counts = Counts()
    for seconds in (0.0001, 0.0005, 0.5, 7.0):
        counts.took(KNOWN, seconds)

    found = scraped(counts)

    buckets = {
        name.rpartition("le=")[2]: value for name, value in found.items() if "_bucket" in name
    }
    assert buckets == {
        "0.0005": 2,
        "0.001": 2,
        "0.01": 2,
        "0.1": 2,
        "1.0": 3,
        "5.0": 3,
        "+Inf": 4,
    }
    assert [value for name, value in found.items() if "_count" in name] == [4]
    assert [value for name, value in found.items() if "_sum" in name] == [7.5006]


def test_nothing_is_shown_before_anybody_has_asked() -> None:
    assert render(families(Counts())) == "# EOF\n"
