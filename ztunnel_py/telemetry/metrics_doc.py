# SPDX-License-Identifier: Apache-2.0
"""Prints docs/metrics.md: `python -m ztunnel_py.telemetry.metrics_doc > docs/metrics.md`."""

from __future__ import annotations

import sys

from ztunnel_py.telemetry.catalogue import LABELS, LOOKUP_LABELS, METRICS, TRAFFIC_LABELS

_HEAD = """\
# Metrics

`/metrics` and `/stats/prometheus` on port 15020, as OpenMetrics 1.0 text; gzip, br, zstd or deflate
as the client accepts. Names, types and labels are ztunnel's; what is marked *ours* exists here
only. A series begins with its first event. *(unstable)* in a help text is ztunnel's word, too.

`deploy/grafana-dashboard.json` shows them, `deploy/alerts.yaml` watches over them.

Not here: `tokio_*`, which tell of a runtime that this proxy has not, and
`istio_crl_untracked_connections_total`, since every connection is tracked.

| Sample | Type | Labels | Meaning |
|---|---|---|---|
"""
_GROUPS = {TRAFFIC_LABELS: "traffic", LOOKUP_LABELS: "client, `hostname`"}
_LABELS = """
## Labels

A value that is not known is `unknown`. *traffic* stands for {traffic}; *client* for {client}.

| Label | Meaning |
|---|---|
"""


def markdown() -> str:
    """The whole page."""
    rows = (
        f"| {'<br>'.join(f'`{name}`' for name in metric.samples)} | {metric.type} "
        f"| {_labels(metric.labels)} | {metric.help.removesuffix('.')}{_ours(metric.is_ours)} |\n"
        for metric in METRICS
    )
    about = _LABELS.format(traffic=_named(TRAFFIC_LABELS), client=_named(LOOKUP_LABELS[:-1]))
    meanings = (f"| `{name}` | {meaning} |\n" for name, meaning in LABELS.items())
    return "".join([_HEAD, *rows, about, *meanings])


def _ours(is_ours: bool) -> str:
    return "; *ours*" if is_ours else ""


def _labels(names: tuple[str, ...]) -> str:
    return _GROUPS.get(names) or _named(names)


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.stdout.write(markdown())
