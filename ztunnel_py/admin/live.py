# SPDX-License-Identifier: Apache-2.0
"""The lists of `/connections` and `/tunnels`: what lives now.

Ids are written as in the log's `conn`. What an engine does not tell is null or left at zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ztunnel_py.admin.json_text import Each

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.dataplane.abc import ConnView, TunnelView

Json = dict[str, Any]


def dump_connections(views: Iterable[ConnView]) -> Each[ConnView, Json]:
    """Oldest first."""
    return Each(_connection, sorted(views, key=lambda view: -view.age_s))


def dump_tunnels(views: Iterable[TunnelView]) -> Each[TunnelView, Json]:
    """Oldest first."""
    return Each(_tunnel, sorted(views, key=lambda view: -view.age_s))


def _connection(view: ConnView) -> Json:
    return {
        "id": _id(view.id),
        "workload": view.workload,
        "direction": view.direction.value,
        "src": str(view.src),
        "originalDst": view.original_dst,
        "actualDst": str(view.actual_dst) if view.actual_dst is not None else None,
        "protocol": view.protocol or None,
        "state": view.state or None,
        "tunnel": _id(view.tunnel) if view.tunnel else None,
        "ageSeconds": _seconds(view.age_s),
        "upstreamBytes": view.upstream_bytes,
        "downstreamBytes": view.downstream_bytes,
        "connectionId": view.trace,
        "stalled": {
            "client": _stall(view.client_stalled_s, view.client_waiting),
            "upstream": _stall(view.upstream_stalled_s, view.upstream_waiting),
        },
    }


def _tunnel(view: TunnelView) -> Json:
    return {
        "id": _id(view.id),
        "workload": view.workload,
        "direction": view.direction.value,
        "remote": str(view.remote),
        "identity": view.identity or None,
        "streams": view.streams,
        "worker": view.worker,
        "draining": view.is_draining,
        "ageSeconds": _seconds(view.age_s),
        "receivedBytes": view.received_bytes,
        "sentBytes": view.sent_bytes,
        "receiveWindow": view.receive_window,
        "sendWindow": view.send_window,
        "stalled": _stall(view.stalled_s, view.unsent_bytes),
    }


def _stall(seconds: float, waiting: int) -> Json | None:
    """For how long how many bytes have waited for a reader; null if none do."""
    if not seconds and not waiting:
        return None
    return {"seconds": _seconds(seconds), "bytes": waiting}


def _id(number: int) -> str:
    return f"{number:016x}"


def _seconds(value: float) -> float:
    return round(value, 3)
