# SPDX-License-Identifier: Apache-2.0
"""The server: gRPC of other makers over real TLS on loopback, with a stream for each client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from tests.support.authority import Authority
from tests.support.istiod.stream import BrokenRuleError, Stream
from tests.support.rpc import server_certificate
from tests.support.wait import DEADLINE_S
from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from tests.support.istiod.stream import Context

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


@dataclass
class Istiod:
    """A control plane; an asynchronous context manager.

    Args:
        names: what its certificate is valid for.
        metadata: what requests must carry.
        serve: has the conversation of each stream; without, tests take streams from `stream`.
        host: where it listens; elsewhere than on loopback clients accept `localhost` for its name.
        port: of it; 0 for any.
        services: add further services to the server, such as the authority's.
        most_received: bytes of the largest request; istiod's limit unless it is told otherwise.
    """

    names: tuple[str, ...] = ("localhost",)
    metadata: Mapping[str, str] = field(default_factory=dict)
    serve: Callable[[Stream], Awaitable[None]] | None = None
    services: Sequence[Callable[[grpc.aio.Server], None]] = ()
    host: str = "127.0.0.1"
    port: int = 0
    most_received: int = 4 << 20
    authority: Authority = field(default_factory=Authority)
    broken_rules: list[str] = field(default_factory=list)
    """What clients did wrong."""
    refuses: tuple[grpc.StatusCode, str] | None = None
    """How every stream ends at once, before anything is sent."""

    def __post_init__(self) -> None:
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where clients find it."""
        host = "localhost" if self.host == "127.0.0.1" else self.host
        return f"https://{host}:{self.port}"

    async def __aenter__(self) -> Istiod:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
        assert not self.broken_rules

    async def start(self) -> None:
        """Listens; again at the same port after a stop."""
        certificate = server_certificate(self.authority, *self.names)
        pair = (certificate.key_pem, certificate.chain_pem)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", self.most_received),
            ("grpc.so_reuseport", 0),
        ]
        self.server = grpc.aio.server(options=options)
        handler = grpc.stream_stream_rpc_method_handler(
            self._converse,
            request_deserializer=DeltaDiscoveryRequest.FromString,
            response_serializer=bytes,
        )
        methods = {"DeltaAggregatedResources": handler}
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, methods),)
        )
        for add in self.services:
            add(self.server)
        address = f"{self.host}:{self.port}"
        credentials = grpc.ssl_server_credentials([pair])
        self.port = self.server.add_secure_port(address, credentials)
        await self.server.start()

    async def stop(self) -> None:
        """Ends all streams at once and listens no more."""
        if self.server is not None:
            await self.server.stop(None)
            self.server = None
            self._streams = asyncio.Queue()

    async def stream(self) -> Stream:
        """The next stream that a client opens."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._streams.get()

    async def _converse(self, _: AsyncIterator[DeltaDiscoveryRequest], context: Context) -> None:
        if self.refuses is not None:
            await context.abort(*self.refuses)
        stream = Stream(context)
        work = [stream.listen()] if self.serve is None else [stream.listen(), self.serve(stream)]
        tasks = [asyncio.ensure_future(self._watched(stream, one)) for one in work]
        try:
            stream.check_metadata(self.metadata)
            self._streams.put_nowait(stream)
            ending = await stream.ended
        finally:
            for task in tasks:
                task.cancel()
        if ending is not None:
            await context.abort(*ending)

    async def _watched(self, stream: Stream, work: Awaitable[None]) -> None:
        """Ends the stream of a client that breaks a rule."""
        try:
            await work
        except BrokenRuleError as error:
            self.broken_rules.append(str(error))
            stream.end(grpc.StatusCode.INVALID_ARGUMENT, str(error))
