# SPDX-License-Identifier: Apache-2.0
"""The `baggage` header: what a workload says of itself, for telemetry only.

Source: spec dataplane, section 2.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.state.workload import Workload


class Baggage(NamedTuple):
    """The fields of a header; absent ones are empty."""

    cluster: str = ""
    namespace: str = ""
    workload_name: str = ""
    service_name: str = ""
    revision: str = ""
    region: str = ""
    zone: str = ""


_FIELDS = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    "k8s.deployment.name": "workload_name",
    "k8s.cronjob.name": "workload_name",
    "k8s.pod.name": "workload_name",
    "k8s.job.name": "workload_name",
    "service.name": "service_name",
    "service.version": "revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}


def render(workload: Workload) -> str:
    """The header's value for `workload`; nothing is escaped and empty fields are left out."""
    pairs = (
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{workload.workload_type}.name", workload.workload_name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    )
    return ",".join(f"{key}={value}" for key, value in pairs if value)


def parse(values: Iterable[str] | None) -> Baggage:
    """What the header's instances say; nothing if one of them could not be read (None).

    A later field wins, an empty one takes back an earlier one, and a value ends at its first `=`.
    """
    found: dict[str, str] = {}
    for value in values or ():
        for part in value.split(","):
            pieces = part.split("=")
            if len(pieces) > 1 and (name := _FIELDS.get(pieces[0])) is not None:
                found[name] = pieces[1]
    return Baggage(**found)
