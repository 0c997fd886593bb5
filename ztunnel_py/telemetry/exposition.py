# SPDX-License-Identifier: Apache-2.0
"""The metrics text: OpenMetrics 1.0, line by line.

Written here rather than by prometheus-client's exposition, because that sorts labels, prints
counters as floats, prints families that have no samples, and makes all of the text at once, while
nothing else can run. Source: spec dataplane, section 12.1; identity-ops, E.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ztunnel_py.telemetry.catalogue import Metric


class Sample(NamedTuple):
    """One line: labels as text between braces, value."""

    labels: str
    value: float
    part: str = ""
    """What follows the family's name; only of families whose samples have several names."""


class Family(NamedTuple):
    """A metric and its samples, made as they are read.

    None in the place of a sample stands for work that had none: a place to rest.
    """

    metric: Metric
    samples: Iterable[Sample | None]


def lines(families: Iterable[Family]) -> Iterator[str | None]:
    """The lines of all families that have samples, and `# EOF`; None is a place to rest."""
    for metric, samples in families:
        name, suffix = metric.name, "_total" if metric.type == "counter" else ""
        is_begun = False
        for sample in samples:
            if sample is None:
                yield None
                continue
            if not is_begun:
                is_begun = True
                yield from _head(metric)
            labels, value, part = sample
            braces = f"{{{labels}}}" if labels else ""
            yield f"{name}{part or suffix}{braces} {value}\n"
    yield "# EOF\n"


def render(families: Iterable[Family]) -> str:
    """The whole text."""
    return "".join(line for line in lines(families) if line is not None)


def labels_text(labels: Mapping[str, str]) -> str:
    """`name="value"` pairs, comma separated, in the mapping's order."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def _head(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}\n"
    yield f"# TYPE {metric.name} {metric.type}\n"
    if metric.unit:
        yield f"# UNIT {metric.name} {metric.unit}\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
