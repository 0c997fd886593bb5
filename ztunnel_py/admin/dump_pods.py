# SPDX-License-Identifier: Apache-2.0
"""The pods of a node as `/config_dump` shows them: `workloadState`.

Source: spec identity-ops, sections B.10 and D.3; ztunnel src/inpod/admin.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ztunnel_py.dataplane.abc import Direction
from ztunnel_py.inpod.manager import PodState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.dataplane.abc import ConnView
    from ztunnel_py.inpod.manager import PodStatus

Json = dict[str, Any]


def dump_pods(pods: Iterable[PodStatus], connections: Iterable[ConnView]) -> Json:
    """An object by uid."""
    by_pod: dict[str, list[ConnView]] = {}
    for one in connections:
        by_pod.setdefault(one.workload, []).append(one)
    return {pod.uid: _pod(pod, by_pod.get(pod.uid, [])) for pod in pods}


def _pod(pod: PodStatus, connections: list[ConnView]) -> Json:
    info = pod.info
    found: Json = {
        "state": pod.state.value,
        "info": {
            "name": info.name,
            "namespace": info.namespace,
            "serviceAccount": info.service_account,
        },
    }
    if pod.state is PodState.UP:
        found["connections"] = {
            "inbound": _connections(connections, Direction.INBOUND),
            "outbound": _connections(connections, Direction.OUTBOUND),
        }
    return found


def _connections(connections: list[ConnView], direction: Direction) -> list[Json]:
    """Those that have been let through so far."""
    return [
        {
            "src": str(one.src),
            "originalDst": one.original_dst or None,
            "actualDst": str(one.actual_dst),
            "protocol": one.protocol,
        }
        for one in connections
        if one.direction is direction and one.protocol and one.actual_dst is not None
    ]
