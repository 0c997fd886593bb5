# SPDX-License-Identifier: Apache-2.0
"""A look at the mesh that notes what was asked for and is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ztunnel_py.state.store import Store

if TYPE_CHECKING:
    from ztunnel_py.state.address import NetworkAddress
    from ztunnel_py.state.service import Service
    from ztunnel_py.state.workload import NamespacedHostname, Workload

_T = TypeVar("_T")


class Misses(Store):
    """The mesh as it is in this turn of the loop; good for one decision.

    Names are those by which the control plane is asked: `network/ip`, `namespace/hostname`.
    """

    def __init__(self, store: Store) -> None:
        vars(self).update(vars(store))
        self.names: set[str] = set()
        """What was looked for in vain."""

    def workload_at(self, address: NetworkAddress) -> Workload | None:
        """As the store; asked for only where no service will do."""
        return self._noted(super().workload_at(address), str(address))

    def at(
        self, address: NetworkAddress, namespace: str | None = None
    ) -> Workload | Service | None:
        """As the store."""
        found = super().workload_at(address) or self.service_at(address, namespace)
        return self._noted(found, str(address))

    def find(
        self, destination: NetworkAddress | NamespacedHostname, namespace: str | None = None
    ) -> Workload | Service | None:
        """As the store."""
        return self._noted(super().find(destination, namespace), str(destination))

    def _noted(self, found: _T, name: str) -> _T:
        if found is None:
            self.names.add(name)
        return found
