# SPDX-License-Identifier: Apache-2.0
"""A mesh and the conversation that istiod has about it: everything first, then what changes.

Source: spec state, sections 1.6, 1.10 and 2.5; istio pilot/pkg/xds/delta.go.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.istiod import convert
from ztunnel_py.state.store import PolicyUpdate, ServiceUpdate, WorkloadUpdate
from ztunnel_py.xds import local
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION, TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.istiod.stream import Stream
    from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest, Resource
    from ztunnel_py.state.store import Update


class Mesh:
    """All resources by type and name."""

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        self.resources: dict[str, dict[str, Resource]] = {type_url: {} for type_url in TYPES}
        self._followers: list[_Follower] = []
        for resource in resources:
            self.resources[resource.resource.type_url][resource.name] = resource

    @classmethod
    def of_yaml(cls, text: str) -> Mesh:
        """The mesh of a local state file."""
        return cls(map(resource_of, local.parse(text, "mesh").updates))

    def change(self, *resources: Resource, removed: Iterable[str] = ()) -> None:
        """Changes the mesh and tells everybody who follows it; one call is one response a type."""
        for type_url, known in self.resources.items():
            new = {r.name: r for r in resources if r.resource.type_url == type_url}
            gone = [name for name in removed if known.pop(name, None) is not None]
            known.update(new)
            if new or gone:
                for follower in self._followers:
                    follower.tell(type_url, list(new.values()), gone)

    def become(self, other: Mesh) -> None:
        """Changes what is different in `other`, and removes what it does not have."""
        changed, removed = [], []
        for type_url, known in self.resources.items():
            wanted = other.resources[type_url]
            changed += [r for name, r in wanted.items() if known.get(name) != r]
            removed += [name for name in known if name not in wanted]
        self.change(*changed, removed=removed)

    async def serve(self, stream: Stream) -> None:
        """Has a conversation until the client leaves."""
        follower = _Follower(self, stream)
        self._followers.append(follower)
        writing = asyncio.ensure_future(follower.write())
        try:
            while (request := await stream.next_request()) is not None:
                follower.hear(request)
        finally:
            writing.cancel()
            self._followers.remove(follower)


class _Follower:
    """What one stream has been told."""

    def __init__(self, mesh: Mesh, stream: Stream) -> None:
        self._mesh = mesh
        self._stream = stream
        self._types: set[str] = set()
        self._wanted: set[str] | None = None
        """Names of addresses; None for all."""
        self._unsaid: asyncio.Queue[tuple[str, list[Resource], list[str]]] = asyncio.Queue()

    def hear(self, request: DeltaDiscoveryRequest) -> None:
        """What a request asks for is queued."""
        names = request.resource_names_subscribe
        if request.type_url not in self._types:
            self._types.add(request.type_url)
            self._answer_first(request)
        elif names:
            assert self._wanted is not None, "everything comes unasked"
            self._wanted.update(names)
            self._answer_names(names)

    def tell(self, type_url: str, resources: list[Resource], removed: list[str]) -> None:
        """The mesh has changed."""
        if type_url == ADDRESS and self._wanted is not None:
            resources = [r for r in resources if self._wanted & {r.name, *r.aliases}]
            removed = [name for name in removed if name in self._wanted]
        if type_url in self._types and (resources or removed):
            self._unsaid.put_nowait((type_url, resources, removed))

    async def write(self) -> None:
        """Sends what is queued."""
        while True:
            type_url, resources, removed = await self._unsaid.get()
            await self._stream.push(*resources, type_url=type_url, removed=removed)

    def _answer_first(self, request: DeltaDiscoveryRequest) -> None:
        """All, but for what the client says that it has."""
        known = self._mesh.resources[request.type_url]
        claimed = request.initial_resource_versions
        if "*" in request.resource_names_unsubscribe:
            self._wanted = set(claimed)
            self._answer_names(claimed)
            return
        news = [
            resource
            for name, resource in known.items()
            if request.type_url == AUTHORIZATION or claimed.get(name) != resource.version
        ]
        gone = [name for name in claimed if name not in known]
        self._unsaid.put_nowait((request.type_url, news, gone))

    def _answer_names(self, names: Iterable[str]) -> None:
        """What has these names; who has none is said to be removed."""
        for name in names:
            known = self._mesh.resources[ADDRESS].values()
            found = [r for r in known if name == r.name or name in r.aliases]
            self._unsaid.put_nowait((ADDRESS, found, [] if found else [name]))


def resource_of(update: Update) -> Resource:
    """What istiod would send for it."""
    match update:
        case WorkloadUpdate():
            return convert.workload(update)
        case ServiceUpdate():
            return convert.service(update)
        case PolicyUpdate():
            return convert.policy(update)
        case _:
            raise ValueError(f"{update} is not something that is there")
