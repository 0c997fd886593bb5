# SPDX-License-Identifier: Apache-2.0
"""Takes responses into the store, one resource at a time.

Resources come first and removals after them, so a name in both is gone afterwards. A resource that
is wrong is refused alone. Source: spec state, section 1.5; ztunnel src/xds.rs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ztunnel_py.state.store import PolicyRemoval, ServiceRemoval, WorkloadRemoval
from ztunnel_py.state.workload import NamespacedHostname
from ztunnel_py.telemetry.log import logger
from ztunnel_py.xds import decode, wire
from ztunnel_py.xds.counts import add
from ztunnel_py.xds.decode import ResourceError
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION, TYPES, Outcome
from ztunnel_py.xds.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from ztunnel_py.state.store import Store, Update
    from ztunnel_py.xds.counts import Counts

log = logger("ztunnel::xds")


class Ingest:
    """Applies responses to one store.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(
        self, store: Store, counts: Counts, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._counts = counts
        self._slices = Slices(store, now)

    async def take(
        self,
        payload: bytes | bytearray,
        replaced: Callable[[str], Collection[str]] = lambda _: (),
    ) -> Outcome:
        """Applies a response, letting others run every few milliseconds.

        `replaced` tells, for a type, the names that go unless the response has them.

        Raises:
            MalformedError: it cannot be read; what could be is applied.
        """
        taken = _Taking(self._store, memoryview(payload))
        await self._slices.apply(taken.read_head())
        outcome = taken.outcome
        url = outcome.type_url if outcome.type_url in TYPES else "unknown"
        if url == "unknown":
            log.error("unknown type", {"type_url": outcome.type_url})
        add(self._counts.messages, url)
        await self._slices.apply(taken.updates())
        add(self._counts.message_bytes, url, taken.payload_bytes)
        await self._slices.apply(taken.removals())
        await self._slices.apply(taken.absences(replaced(outcome.type_url)))
        return outcome


class _Taking:
    """One response on its way into the store, in several series of steps."""

    def __init__(self, store: Store, message: memoryview) -> None:
        self._store = store
        self._message = message
        self.outcome = Outcome("", "")
        self.payload_bytes = 0

    def read_head(self) -> Iterator[None]:
        """Learns what it is; that may come after the resources."""
        for number, content in wire.walk(self._message):
            if number == wire.TYPE_URL:
                self.outcome.type_url = wire.text(content)
            elif number == wire.NONCE:
                self.outcome.nonce = wire.text(content)
            yield None

    def updates(self) -> Iterator[Update | None]:
        """What its resources change."""
        for number, content in wire.walk(self._message):
            yield self._update(content) if number == wire.RESOURCES else None

    def removals(self) -> Iterator[Update | None]:
        """What else it takes away."""
        for number, content in wire.walk(self._message):
            yield self._removal(wire.text(content)) if number == wire.REMOVED_RESOURCES else None

    def absences(self, names: Iterable[str]) -> Iterator[Update | None]:
        """What goes because it has nothing to say of it."""
        for name in names:
            yield None if self.outcome.names(name) else self._removal(name)

    def _update(self, content: memoryview) -> Update | None:
        resource, outcome = wire.resource(content), self.outcome
        name, payload = resource.name, resource.resource.value
        self.payload_bytes += len(payload)
        try:
            if not resource.HasField("resource"):
                raise ResourceError("the resource has no payload")
            update = _decoded(outcome.type_url, name, payload)
        except ResourceError as error:
            outcome.accepted.pop(name, None)
            outcome.rejected[name] = str(error)
            return None
        outcome.accepted[name] = resource.version
        outcome.aliases.update(resource.aliases)
        return update

    def _removal(self, name: str) -> Update | None:
        self.outcome.removed.add(name)
        if self.outcome.type_url == ADDRESS:
            return _address_removal(self._store, name)
        return PolicyRemoval(name) if self.outcome.type_url == AUTHORIZATION else None


def _decoded(type_url: str, name: str, payload: bytes) -> Update | None:
    if type_url == ADDRESS:
        return decode.address(payload)
    return decode.authorization(name, payload) if type_url == AUTHORIZATION else None


def _address_removal(store: Store, name: str) -> Update | None:
    """A workload's uid goes first; what is none may name a service."""
    if store.workload(name) is not None:
        return WorkloadRemoval(name)
    namespace, slash, hostname = name.partition("/")
    if "/" in hostname:
        return None  # the uid of a workload that never was, or is gone already
    key = NamespacedHostname(namespace, hostname)
    if not slash or store.service(key) is None:
        log.warn(f"removal of {name!r}, which is neither a workload nor a service")
        return None
    return ServiceRemoval(key)
