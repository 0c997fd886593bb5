# SPDX-License-Identifier: Apache-2.0
"""One discovery stream, as the server sees it: every request is checked against the protocol.

Source: spec state, sections 1.3 to 1.6 and 1.11; istio pilot/pkg/xds/delta.go.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import TYPE_CHECKING

from tests.support.wait import DEADLINE_S
from ztunnel_py.proto.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
)
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import grpc

    from ztunnel_py.proto.discovery_pb2 import (
        Resource,
    )

    Context = grpc.aio.ServicerContext[DeltaDiscoveryRequest, bytes]

_NODE_PARTS = 4
_METADATA = {"NAME", "NAMESPACE", "INSTANCE_IPS", "NODE_NAME"}


class BrokenRuleError(Exception):
    """The client broke a rule of the protocol."""


class Stream:
    """A stream that a client has opened."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.metadata = {
            key: value.decode() if isinstance(value, bytes) else value
            for key, value in context.invocation_metadata() or ()
        }
        self.ended: asyncio.Future[tuple[grpc.StatusCode, str] | None]
        self.ended = asyncio.get_running_loop().create_future()
        self._requests: asyncio.Queue[DeltaDiscoveryRequest | None] = asyncio.Queue()
        self._types: list[str] = []
        self._nonces: dict[str, str] = {}
        self._subscribed: set[str] = set()
        self._numbers = itertools.count(1)

    # --- what the client says

    async def listen(self) -> None:
        """Reads and checks requests until the client has said all.

        Raises:
            BrokenRuleError: one is wrong.
        """
        while isinstance(request := await self._context.read(), DeltaDiscoveryRequest):
            self._check(request)
            self._requests.put_nowait(request)
        self._requests.put_nowait(None)

    async def next_request(self) -> DeltaDiscoveryRequest | None:
        """The next request, however long that takes; None if the client has said all."""
        return await self._requests.get()

    async def request(self) -> DeltaDiscoveryRequest | None:
        """The next request, which has to come soon; None if the client has said all."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.next_request()

    async def opening(self) -> dict[str, DeltaDiscoveryRequest]:
        """The first requests, by type."""
        requests = [await self.request(), await self.request()]
        return {request.type_url: request for request in requests if request is not None}

    async def accepted(self) -> None:
        """Returns when the last response has been accepted."""
        request = await self.request()
        assert request is not None, "the client left instead of answering"
        assert not request.HasField("error_detail"), request.error_detail.message

    async def refused(self) -> str:
        """The text with which the last response was refused."""
        request = await self.request()
        assert request is not None, "the client left instead of answering"
        assert request.HasField("error_detail"), "the response was accepted"
        return request.error_detail.message

    def _check(self, request: DeltaDiscoveryRequest) -> None:
        if request.response_nonce or request.type_url in self._types:
            self._check_later(request)
        else:
            self._check_first(request)
        self._subscribed.update(request.resource_names_subscribe)

    def _check_first(self, request: DeltaDiscoveryRequest) -> None:
        expected = (ADDRESS, AUTHORIZATION)[len(self._types) :][:1]
        _rule([request.type_url] == list(expected), f"a first request of {request.type_url}")
        self._types.append(request.type_url)
        parts = request.node.id.split("~")
        _rule(len(parts) == _NODE_PARTS and parts[0] == "ztunnel", f"node id {request.node.id!r}")
        _rule(set(request.node.metadata.fields) >= _METADATA, "node metadata are missing")
        _rule(not request.HasField("error_detail"), "an error in a first request")

    def _check_later(self, request: DeltaDiscoveryRequest) -> None:
        _rule(not request.HasField("node"), "a node in a later request")
        _rule(not request.initial_resource_versions, "initial versions in a later request")
        if request.response_nonce:
            nonce = self._nonces.pop(request.response_nonce, None)
            _rule(nonce == request.type_url, f"nonce {request.response_nonce!r} is not open")
            has_error = request.HasField("error_detail")
            _rule(not has_error or bool(request.error_detail.message), "an error without text")
            _rule(not request.resource_names_subscribe, "a subscription in an answer")
        else:
            new = set(request.resource_names_subscribe) - self._subscribed
            _rule(bool(new), "neither an answer nor a new subscription")

    # --- what the server says

    async def push(
        self,
        *resources: Resource,
        type_url: str = ADDRESS,
        removed: Iterable[str] = (),
        nonce: str = "",
    ) -> None:
        """Sends a response."""
        version = f"2026-01-01T00:00:00Z/{next(self._numbers)}"
        nonce = nonce or f"{version}{uuid.uuid4()}"
        self._nonces[nonce] = type_url
        response = DeltaDiscoveryResponse(
            system_version_info=version,
            resources=resources,
            type_url=type_url,
            nonce=nonce,
            removed_resources=removed,
        )
        await self.write(response.SerializeToString())

    async def write(self, message: bytes) -> None:
        """Sends a message of any bytes."""
        await self._context.write(message)

    def end(self, code: grpc.StatusCode | None = None, message: str = "") -> None:
        """Ends the stream: with a status, or in order."""
        if not self.ended.done():
            self.ended.set_result(None if code is None else (code, message))

    # --- who the client is

    def check_metadata(self, expected: Mapping[str, str]) -> None:
        """Compares request metadata.

        Raises:
            BrokenRuleError: one is missing or different.
        """
        for key, value in expected.items():
            _rule(self.metadata.get(key) == value, f"{key}: {self.metadata.get(key)!r}")


def _rule(is_kept: bool, otherwise: str) -> None:
    if not is_kept:
        raise BrokenRuleError(otherwise)
