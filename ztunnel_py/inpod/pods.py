# SPDX-License-Identifier: Apache-2.0
"""The proxy of one pod: its listeners in the engine, and who it is.

No certificate is asked for before a connection needs one. Source: spec identity-ops, section B.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ztunnel_py.dataplane.abc import WorkloadSpec
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.dataplane.abc import DataPlane, ListenAddress, Resolve
    from ztunnel_py.netns import Netns
    from ztunnel_py.state.workload import WorkloadInfo

log = logger("ztunnel::inpod")


class Decider(Protocol):
    """Who answers the engine's questions about a workload."""

    def serve(self, workload: str, info: WorkloadInfo) -> None:
        """From now on `workload` stands for this pod."""

    def forget(self, workload: str) -> None:
        """It stands for nobody any more."""


class Names(Protocol):
    """Who answers a workload's DNS queries; dns/servers.py."""

    def open(self, workload: str, info: WorkloadInfo, netns: Netns) -> Resolve:
        """Binds a DNS server in the pod's namespace; who looks up names for others as it does.

        Raises:
            OSError: it cannot; the text says all.
        """

    def serve(self, workload: str) -> None:
        """Begins to answer."""

    def stop(self, workload: str) -> None:
        """Ends at once."""


class PodProxies:
    """Starts and stops what serves a pod; the engine knows it by the pod's uid."""

    def __init__(
        self,
        plane: DataPlane,
        decider: Decider,
        listeners: Sequence[ListenAddress],
        names: Names | None = None,
    ) -> None:
        """Without `names`, pods have no DNS server."""
        self._plane = plane
        self._decider = decider
        self._listeners = tuple(listeners)
        self._names = names

    def start(self, uid: str, info: WorkloadInfo, netns: Netns) -> None:
        """Binds all listeners in the pod's namespace, and serves.

        Raises:
            OSError: one of them cannot be bound; then there is none.
        """
        resolve = None if self._names is None else self._names.open(uid, info, netns)
        self._decider.serve(uid, info)
        spec = WorkloadSpec(uid, self._listeners, netns.fileno(), resolve)
        try:
            bound = self._plane.workload_add(spec)
        except OSError as error:
            self._decider.forget(uid)
            if self._names is not None:
                self._names.stop(uid)
            raise OSError(
                error.errno, f"failed to bind to address {error.filename}: {error.strerror}"
            ) from error
        for role, address in bound.items():
            fields = {
                "address": Display(str(address)),
                "component": role.value,
                "transparent": self._plane.is_transparent(uid, role),
                "workload": Display(str(info)),
            }
            log.info("listener established", fields)
        self._plane.workload_serve(uid)
        if self._names is not None:
            self._names.serve(uid)

    def stop(self, uid: str) -> None:
        """Ends the listeners, the connections and the tunnels of a pod that is gone."""
        if self._names is not None:
            self._names.stop(uid)
        self._plane.workload_remove(uid)
        self._decider.forget(uid)
