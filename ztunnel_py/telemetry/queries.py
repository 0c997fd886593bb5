# SPDX-License-Identifier: Apache-2.0
"""Metrics of the DNS proxy.

Source: spec state, section 7.9; ztunnel src/dns/metrics.rs.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from ztunnel_py.decide.verdict import UNKNOWN
from ztunnel_py.dns.counts import BUCKETS_S
from ztunnel_py.telemetry import catalogue
from ztunnel_py.telemetry.exposition import Family, Sample, labels_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ztunnel_py.dns.counts import Counts, Durations, Labels

_BOUNDS = (*map(str, BUCKETS_S), "+Inf")


def families(counts: Counts) -> Iterator[Family]:
    """All families, each with the samples of those who have asked."""
    for metric, found in (
        (catalogue.DNS_REQUESTS, counts.requests),
        (catalogue.DNS_FORWARDED, counts.forwarded),
        (catalogue.DNS_FAILED, counts.failed),
    ):
        yield Family(metric, [Sample(_text(labels), count) for labels, count in found.items()])
    yield Family(catalogue.DNS_DURATION, list(_durations(counts.durations)))


def _durations(durations: Mapping[Labels, Durations]) -> Iterator[Sample]:
    for labels, found in durations.items():
        text = _text(labels)
        cumulative = list(accumulate(found.counts))
        yield Sample(text, found.sum_s, "_sum")
        yield Sample(text, cumulative[-1], "_count")
        for bound, count in zip(_BOUNDS, cumulative, strict=True):
            yield Sample(f'{text},le="{bound}"', count, "_bucket")


def _text(labels: Labels) -> str:
    return labels_text({name: value or UNKNOWN for name, value in labels._asdict().items()})
