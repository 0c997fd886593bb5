# SPDX-License-Identifier: Apache-2.0
"""Samples of the metrics of traffic, pods and the control plane, from whoever counts.

Made as they are read, and texts of label sets once: many thousand series cost no more than their
numbers. What each metric is: catalogue.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol

from ztunnel_py.decide.verdict import UNKNOWN, TrafficLabels
from ztunnel_py.errors import Flag
from ztunnel_py.telemetry import catalogue
from ztunnel_py.telemetry.exposition import Family, Sample, labels_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ztunnel_py.dataplane.counters import SlotCounts

_REPORTERS = ("source", "destination")
_SECURITY = TrafficLabels._fields.index("connection_security_policy")


class Counters(Protocol):
    """The part of an engine that metrics read."""

    def slots(self) -> Mapping[TrafficLabels, SlotCounts]:
        """Traffic counters by label set."""

    def events(self) -> Mapping[str, int]:
        """Event counters by name."""


class DiscoveryCounts(Protocol):
    """What has come from the control plane."""

    @property
    def terminations(self) -> Mapping[str, int]:
        """Streams that have ended, or could not be opened, by reason."""

    @property
    def messages(self) -> Mapping[str, int]:
        """Responses by type."""

    @property
    def message_bytes(self) -> Mapping[str, int]:
        """Bytes of their resources' payloads by type."""


class PodCounts(Protocol):
    """The part of a manager of pods that metrics read."""

    @property
    def running(self) -> int:
        """Pods that are served."""

    @property
    def pending(self) -> int:
        """Pods that could not be started."""

    @property
    def started(self) -> int:
        """Proxies started so far."""

    @property
    def stopped(self) -> int:
        """Proxies stopped so far."""


def build(istio_version: str) -> Family:
    """Who this is."""
    text = labels_text({"component": "ztunnel", "tag": istio_version})
    return Family(catalogue.BUILD, [Sample(text, 1)])


def discovery(counts: DiscoveryCounts, is_connected: bool | None) -> Iterator[Family]:
    """What the control plane said; `is_connected` is None where there is none."""
    for metric, by_key in (
        (catalogue.XDS_ENDED, counts.terminations),
        (catalogue.XDS_MESSAGES, counts.messages),
        (catalogue.XDS_BYTES, counts.message_bytes),
    ):
        (label,) = metric.labels
        samples = [Sample(labels_text({label: key}), count) for key, count in by_key.items()]
        yield Family(metric, samples)
    connected = [] if is_connected is None else [Sample("", int(is_connected))]
    yield Family(catalogue.XDS_CONNECTED, connected)


def traffic(counters: Counters) -> Iterator[Family]:
    """What the engine counts."""
    slots, events = counters.slots(), counters.events()
    for metric, value in (
        (catalogue.TCP_OPENED, lambda counts: counts.opened),
        (catalogue.TCP_RECEIVED, lambda counts: counts.received),
        (catalogue.TCP_SENT, lambda counts: counts.sent),
    ):
        yield Family(metric, _of_opened(slots, value))
    yield Family(catalogue.TCP_CLOSED, _of_closed(slots, with_ok=True))
    yield Family(catalogue.TCP_FAILED, _of_closed(slots, with_ok=False))
    yield _sockets(events)
    yield _revoked(events)
    samples = [Sample(labels_text({"event": name}), n) for name, n in sorted(events.items())]
    yield Family(catalogue.EVENTS, samples)


def pods(counts: PodCounts) -> Iterator[Family]:
    """Pods of this node, by how they stand; proxies started and stopped so far."""
    for metric, value in (
        (catalogue.PODS_ACTIVE, counts.running),
        (catalogue.PODS_PENDING, counts.pending),
        (catalogue.PODS_STARTED, counts.started),
        (catalogue.PODS_STOPPED, counts.stopped),
    ):
        yield Family(metric, [Sample("", value)])


def lookups(counts: Mapping[tuple[str, ...], int]) -> Family:
    """Lookups of hostnames by the values of `catalogue.LOOKUP_LABELS`."""
    samples = []
    for values, count in counts.items():
        named = zip(catalogue.LOOKUP_LABELS, values, strict=True)
        labels = {name: value or UNKNOWN for name, value in named}
        samples.append(Sample(labels_text(labels), count))
    return Family(catalogue.LOOKUPS, samples)


def lost_lines(counts: Mapping[str, int]) -> Family:
    """Lines that are missing in the log, by reason."""
    samples = [Sample(labels_text({"reason": reason}), n) for reason, n in counts.items()]
    return Family(catalogue.LOST_LINES, samples)


def exports(counts: Mapping[str, int]) -> Family:
    """Records for OpenTelemetry, by what became of them."""
    samples = [Sample(labels_text({"outcome": outcome}), n) for outcome, n in counts.items()]
    return Family(catalogue.OTEL_RECORDS, samples)


def _of_opened(
    slots: Mapping[TrafficLabels, SlotCounts], value: Callable[[SlotCounts], int]
) -> Iterator[Sample | None]:
    """One number of each label set; its series begins with the first connection."""
    for labels, counts in slots.items():
        yield Sample(_text(labels, Flag.NONE), value(counts)) if counts.opened else None


def _of_closed(
    slots: Mapping[TrafficLabels, SlotCounts], *, with_ok: bool
) -> Iterator[Sample | None]:
    """Endings by flag."""
    for labels, counts in slots.items():
        yield None
        if counts.opened:
            for flag, count in counts.closed.items():
                if with_ok or flag is not Flag.NONE:
                    yield Sample(_text(labels, flag), count)


def _sockets(events: Mapping[str, int]) -> Family:
    """Accepted sockets that are open: the difference of two counters that only grow."""
    samples = [
        Sample(
            f'reporter="{reporter}"',
            events[opened] - events.get(f"sockets_closed_{reporter}", 0),
        )
        for reporter in _REPORTERS
        if (opened := f"sockets_opened_{reporter}") in events
    ]
    return Family(catalogue.SOCKETS, samples)


def _revoked(events: Mapping[str, int]) -> Family:
    samples = [
        Sample(f'reporter="{reporter}"', events[event])
        for reporter in _REPORTERS
        if (event := f"crl_rejections_{reporter}") in events
    ]
    return Family(catalogue.REVOKED, samples)


def _text(labels: TrafficLabels, flag: Flag) -> str:
    before, after = _around_flag(labels)
    return f"{before}{flag.value}{after}"


@functools.lru_cache(maxsize=16_384)  # about 20 MB when full
def _around_flag(labels: TrafficLabels) -> tuple[str, str]:
    """The text of a label set, before and behind the flag's value."""
    values = [(name, value or UNKNOWN) for name, value in labels._asdict().items()]
    before = labels_text(dict([*values[:_SECURITY], ("request_protocol", "tcp")]))
    return f'{before},response_flags="', f'",{labels_text(dict(values[_SECURITY:]))}'
