# SPDX-License-Identifier: Apache-2.0
"""Metric labels and the constant part of access-log lines.

Source: spec dataplane, sections 12.3 and 12.4, with their quirks: a source known from its baggage
alone has its workload name for an app, and a destination's principal is a label also of plaintext.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.decide.verdict import UNKNOWN, LogFields, TrafficLabels

if TYPE_CHECKING:
    from ztunnel_py.decide.baggage import Baggage
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.service import Service
    from ztunnel_py.state.workload import Workload

MUTUAL_TLS = "mutual_tls"


class Side(NamedTuple):
    """One side of a connection: the first eight fields are labels in their order."""

    workload: str = ""
    canonical_service: str = ""
    canonical_revision: str = ""
    namespace: str = ""
    principal: str = ""
    app: str = ""
    version: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""
    log_name: str = ""
    """The pod's name, else its canonical service."""


NOBODY = Side()


def known(workload: Workload, identity: Identity | None) -> Side:
    """A workload of the state, with the identity that labels give it."""
    canonical, revision = workload.canonical_name, workload.canonical_revision
    return Side(
        workload.workload_name,
        canonical,
        revision,
        workload.namespace,
        str(identity) if identity is not None else "",
        canonical,
        revision,
        workload.cluster_id,
        workload.locality.region,
        workload.locality.zone,
        workload.name,
    )


def claimed(baggage: Baggage, identity: Identity | None) -> Side:
    """A source that is known by what it says, and by the identity that it proved."""
    return Side(
        baggage.workload_name,
        baggage.service_name,
        baggage.revision,
        baggage.namespace,
        str(identity) if identity is not None else "",
        baggage.workload_name,
        baggage.revision,
        baggage.cluster,
        baggage.region,
        baggage.zone,
        baggage.service_name,
    )


def traffic(
    reporter: str, source: Side, destination: Side, service: Service | None, is_mutual_tls: bool
) -> TrafficLabels:
    """The labels of one hop."""
    intended = ("", "", "")
    if service is not None:
        intended = (service.hostname, service.namespace, service.name)
    return TrafficLabels(
        reporter,
        *source[:8],
        *intended,
        *destination[:8],
        MUTUAL_TLS if is_mutual_tls else UNKNOWN,
        source.region,
        source.zone,
        destination.region,
        destination.zone,
    )


def log_fields(
    source: Side, destination: Side, service: Service | None, is_mutual_tls: bool
) -> LogFields:
    """The constant fields of one hop's log lines; identities only where they were proved."""
    return LogFields(
        source.log_name,
        source.namespace,
        source.principal if is_mutual_tls else "",
        source.cluster,
        service.hostname if service is not None else "",
        destination.log_name,
        destination.namespace,
        destination.principal if is_mutual_tls else "",
        destination.cluster,
    )
