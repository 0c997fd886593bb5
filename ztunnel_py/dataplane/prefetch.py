# SPDX-License-Identifier: Apache-2.0
"""Fetches certificates of this node's workloads before a connection needs them, and drops them.

One after the other, so that connections never wait behind a push that names many workloads. What is
dropped is the certificate of an account that no workload of this node has any more.
Source: spec identity-ops, section A.4; ztunnel src/cert_fetcher.rs, src/state/workload.rs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.manager import Priority
from ztunnel_py.state.workload import Protocol
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from ztunnel_py.identity.manager import SecretManager
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.state.store import Change, Store

_MOST_WAITING = 256

log = logger("ztunnel::cert_fetcher")


class Prefetch:
    """Follows the workloads of a node; only where one proxy serves all of them."""

    def __init__(self, store: Store, manager: SecretManager, node_name: str | None) -> None:
        """Prefetches nothing where the node has no name, as all workloads would be its own."""
        self._store = store
        self._manager = manager
        self._has_node = bool(node_name)
        self._version = -1
        self._wanted: set[Identity] = set()
        self._waiting: asyncio.Queue[Identity] = asyncio.Queue(_MOST_WAITING)

    async def run(self) -> None:
        """Fetches until it is cancelled."""
        unsubscribe = self._store.subscribe(self._look)
        self._look()
        try:
            while True:
                await self._fetch(await self._waiting.get())
        finally:
            unsubscribe()

    async def _fetch(self, identity: Identity) -> None:
        if identity not in self._wanted:
            return
        try:
            await self._manager.get(identity, Priority.WARM_UP)
        except IdentityError as error:  # the manager tries again by itself
            fields = {"id": Display(identity), "error": Display(error)}
            log.error("unable to prefetch cert, skipping", fields)

    def _look(self, _: Change | None = None) -> None:
        """Compares with what was there before, if a workload of this node came, changed or went."""
        if self._version == self._store.local_version:
            return
        self._version = self._store.local_version
        before, self._wanted = self._wanted, self._local() if self._has_node else set()
        for identity in sorted(self._wanted - before):
            try:
                self._waiting.put_nowait(identity)
            except asyncio.QueueFull:
                log.info("couldn't prefetch: too many are waiting", {"id": Display(identity)})
        for identity in self._manager.identities():
            if not self._store.has_account(identity.namespace, identity.service_account):
                self._manager.forget(identity)

    def _local(self) -> set[Identity]:
        """Whom connections to this node's workloads need; plaintext needs nobody."""
        return {
            workload.identity
            for workload in self._store.local_workloads()
            if workload.native_tunnel or workload.protocol is Protocol.HBONE
        }
