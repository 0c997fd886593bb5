# SPDX-License-Identifier: Apache-2.0
"""The metrics text: OpenMetrics 1.0, made from the engine's counters at each scrape.

Written here rather than by prometheus-client's exposition, because that sorts labels, prints
counters as floats and prints families that have no samples; dashboards and the reference agree on
the form below. Source: spec dataplane, sections 12.1 to 12.3; identity-ops, E.1 and E.2.

    process_*                    descriptors of this process
    istio_build                  which Istio version this reports itself as
    istio_tcp_*                  traffic by label set
    istio_on_demand_dns          lookups of workloads that have a hostname only
    istio_dns_*                  queries of pods; see queries.py
    workload_manager_*           pods of this node (no istio_ in front, as in ztunnel)
    istio_xds_*                  what has come from the control plane, and how streams ended
    istio_crl_*                  whom revocation lists turn away
    istio_certificate_*          ours: certificates by identity (certificates.py)
    ztunnel_py_events_total      ours: event counters of the engine by name
"""

from __future__ import annotations

import functools
import os
import resource
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ztunnel_py.decide.verdict import UNKNOWN, TrafficLabels
from ztunnel_py.errors import Flag
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ztunnel_py.dataplane.counters import SlotCounts

_FD_DIRECTORY = "/dev/fd"
_REPORTERS = ("source", "destination")
_SECURITY = TrafficLabels._fields.index("connection_security_policy")
_log = logger("ztunnel::metrics")
LOOKUP_LABELS = (*TrafficLabels._fields[1:9], "hostname")
"""Of `istio_on_demand_dns`: the client, and what was looked up."""


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


class Sample(NamedTuple):
    """One line: labels as text between braces, value."""

    labels: str
    value: float
    part: str = ""
    """What follows the family's name; only of families whose samples have several names."""


class Family(NamedTuple):
    """A metric: name without `_total`, type, help and its samples."""

    name: str
    type: str
    help: str
    samples: Iterable[Sample]


def render(families: Iterable[Family]) -> str:
    """The exposition of all families that have samples, ended by `# EOF`."""
    lines: list[str] = []
    for name, type_, help_, samples in families:
        suffix = "_total" if type_ == "counter" else ""
        text = [
            f"{name}{part or suffix}{{{labels}}} {value}"
            if labels
            else f"{name}{part or suffix} {value}"
            for labels, value, part in samples
        ]
        if text:
            lines += (f"# HELP {name} {help_}", f"# TYPE {name} {type_}", *text)
    return "\n".join([*lines, "# EOF", ""])


def labels_text(labels: Mapping[str, str]) -> str:
    """`name="value"` pairs, comma separated, in the mapping's order."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def families(counters: Counters, istio_version: str) -> Iterator[Family]:
    """All families in the order of the exposition."""
    yield from _process()
    build = labels_text({"component": "ztunnel", "tag": istio_version})
    yield Family("istio_build", "gauge", "Istio component build info.", [Sample(build, 1)])
    events = counters.events()
    yield from _traffic(counters.slots())
    yield _sockets(events)
    yield _revoked(events)
    yield Family(
        "ztunnel_py_events",
        "counter",
        "Events of the data plane by name (unstable).",
        [Sample(labels_text({"event": name}), count) for name, count in sorted(events.items())],
    )


def discovery(counts: DiscoveryCounts) -> Iterator[Family]:
    """Families of the control plane. Source: ztunnel src/xds/metrics.rs."""
    for name, label, help_, samples in (
        (
            "connection_terminations",
            "reason",
            "Streams to the control plane that ended (unstable).",
            counts.terminations,
        ),
        ("message", "url", "Messages of the control plane (unstable).", counts.messages),
        ("message_bytes", "url", "Bytes of their resources (unstable).", counts.message_bytes),
    ):
        yield Family(
            f"istio_xds_{name}",
            "counter",
            help_,
            [Sample(labels_text({label: key}), count) for key, count in samples.items()],
        )


def _process() -> Iterator[Family]:
    try:
        # The listing itself holds a descriptor.
        opened = len(os.listdir(_FD_DIRECTORY)) - 1
    except OSError as error:
        _log.error(f"cannot list {_FD_DIRECTORY}: {error}")
        opened = 0
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Family("process_open_fds", "gauge", "Open file descriptors", [Sample("", opened)])
    yield Family("process_max_fds", "gauge", "Limit of open file descriptors", [Sample("", limit)])


def _traffic(slots: Mapping[TrafficLabels, SlotCounts]) -> Iterator[Family]:
    opened, closed, failed, received, sent = [], [], [], [], []
    for labels, counts in slots.items():
        if not counts.opened:
            continue  # a series begins with the first connection
        text = _traffic_labels(labels, Flag.NONE)
        opened.append(Sample(text, counts.opened))
        received.append(Sample(text, counts.received))
        sent.append(Sample(text, counts.sent))
        for flag, count in counts.closed.items():
            sample = Sample(_traffic_labels(labels, flag), count)
            closed.append(sample)
            if flag is not Flag.NONE:
                failed.append(sample)
    for name, help_, samples in (
        ("connections_opened", "TCP connections opened.", opened),
        ("connections_closed", "TCP connections closed.", closed),
        ("received_bytes", "Bytes from client to upstream.", received),
        ("sent_bytes", "Bytes from upstream to client.", sent),
        ("connections_failed", "TCP connections that ended with an error (unstable).", failed),
    ):
        yield Family(f"istio_tcp_{name}", "counter", help_, samples)


def pods(counts: PodCounts) -> Iterator[Family]:
    """Pods of this node, by how they stand; proxies started and stopped so far."""
    for name, type_, help_, value in (
        ("active_proxy_count", "gauge", "Proxies of pods that run.", counts.running),
        (
            "pending_proxy_count",
            "gauge",
            "Proxies of pods that could not be started.",
            counts.pending,
        ),
        ("proxies_started", "counter", "Proxies of pods that were started.", counts.started),
        ("proxies_stopped", "counter", "Proxies of pods that were stopped.", counts.stopped),
    ):
        yield Family(f"workload_manager_{name}", type_, help_, [Sample("", value)])


def lookups(counts: Mapping[tuple[str, ...], int]) -> Family:
    """Lookups of hostnames by the values of `LOOKUP_LABELS`."""
    samples = [
        Sample(
            labels_text(
                {name: value or UNKNOWN for name, value in zip(LOOKUP_LABELS, values, strict=True)}
            ),
            count,
        )
        for values, count in counts.items()
    ]
    help_ = "The total number of requests that used on-demand DNS (unstable)."
    return Family("istio_on_demand_dns", "counter", help_, samples)


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
    help_ = "Accepted TCP sockets that are open (unstable)."
    return Family("istio_tcp_sockets_open", "gauge", help_, samples)


def _revoked(events: Mapping[str, int]) -> Family:
    samples = [
        Sample(f'reporter="{reporter}"', events[event])
        for reporter in _REPORTERS
        if (event := f"crl_rejections_{reporter}") in events
    ]
    help_ = "Connections refused or ended because the other side is revoked (unstable)."
    return Family("istio_crl_policy_rejections", "counter", help_, samples)


@functools.lru_cache(maxsize=16_384)  # about 20 MB when full
def _traffic_labels(labels: TrafficLabels, flag: Flag) -> str:
    values = {name: value or UNKNOWN for name, value in labels._asdict().items()}
    inserted = {"request_protocol": "tcp", "response_flags": flag.value}
    names = TrafficLabels._fields
    before = {name: values[name] for name in names[:_SECURITY]}
    after = {name: values[name] for name in names[_SECURITY:]}
    return labels_text(before | inserted | after)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
