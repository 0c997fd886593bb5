# SPDX-License-Identifier: Apache-2.0
"""Keeps a stream to the control plane open, and the store as the control plane says.

While there is no stream everything known stays in use. A response is taken, and answered, before
the next one is read; what comes meanwhile waits in the connection's window.
Source: spec state, sections 1.2, 1.5 and 1.7; ztunnel src/xds/client.rs.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from typing import TYPE_CHECKING

from ztunnel_py.clock import pause
from ztunnel_py.rpc.errors import OpenError, RootsError, RpcError, Status
from ztunnel_py.telemetry.log import logger
from ztunnel_py.xds import backoff, wire
from ztunnel_py.xds.counts import add
from ztunnel_py.xds.on_demand import OnDemand

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.clock import Clock
    from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest
    from ztunnel_py.rpc.call import Call
    from ztunnel_py.rpc.channel import Channel
    from ztunnel_py.tasks import Tasks
    from ztunnel_py.xds.counts import Counts
    from ztunnel_py.xds.ingest import Ingest
    from ztunnel_py.xds.session import Session

PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

log = logger("ztunnel::xds")


class Client:
    """One session with a control plane.

    Args:
        channel: makes a new channel, for each stream; may raise RootsError or OpenError.
    """

    def __init__(
        self,
        channel: Callable[[], Channel],
        session: Session,
        ingest: Ingest,
        counts: Counts,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._channel = channel
        self._session = session
        self._ingest = ingest
        self._counts = counts
        self._clock = clock
        self._tasks = tasks
        self._call: Call | None = None
        self._sending = asyncio.Lock()
        self._unsent: list[DeltaDiscoveryRequest] = []
        self.on_demand = OnDemand(self._ask, clock)
        """Used only where addresses do not come unasked."""
        self.synced = asyncio.Event()
        """Set once everything that comes unasked has come; for good."""
        self.is_connected = False
        """There is a stream, and the control plane has spoken on it."""

    async def run(self) -> None:
        """Opens stream after stream, for ever."""
        backoff_s = backoff.FIRST_S
        while True:
            ending = await self._ended()
            retry = backoff.after(ending, backoff_s)
            backoff_s = retry.backoff_s
            add(self._counts.terminations, retry.reason)
            _tell(ending, retry)
            if retry.pause_s:
                await pause(self._clock, retry.pause_s)

    async def _ended(self) -> Exception | None:
        """One stream from begin to end; what ended it, if it was an error."""
        try:
            await self._stream()
        except (RpcError, RootsError, wire.MalformedError) as error:
            if isinstance(error, RpcError) and error.status is Status.RESOURCE_EXHAUSTED:
                self._session.claim_nothing()  # istiod takes no request of more than 4 MiB
            return error
        except Exception as error:  # whatever it is, the next stream may fare better
            log.error("the stream failed", {"stack": traceback.format_exc()})
            return error
        return None

    async def _stream(self) -> None:
        channel = self._channel()
        try:
            async with channel.call(PATH) as call:
                await self._open(call)
                if not await self._take(call):
                    raise OpenError(Status.UNKNOWN, "the server ended the stream without a word")
                self.is_connected = True
                log.info("Stream established")
                while await self._take(call):
                    pass
        finally:
            self._call = None
            self.is_connected = False
            channel.close()

    async def _open(self, call: Call) -> None:
        """Sends the first requests, and then what was asked for while they were sent."""
        self._unsent.clear()
        for request, versions in self._session.open():
            log.debug(
                "sending initial request",
                {"type_url": request.type_url, "resources": len(versions)},
            )
            parts = []
            for part in wire.request_parts(request, versions):
                parts.append(part)
                await asyncio.sleep(0)
            await call.send(*parts)
        self._call = call
        for request in self._unsent:
            await self._send(call, request)

    async def _take(self, call: Call) -> bool:
        """Takes one response; false if there are no more."""
        message = await call.receive_large()
        if message is None:
            return False
        outcome = await self._ingest.take(message, self._session.replaced)
        answer = self._session.answer(outcome)
        fields = {"type_url": outcome.type_url, "nonce": outcome.nonce}
        if answer.HasField("error_detail"):
            log.error("sending response", {**fields, "error": answer.error_detail.message})
        else:
            log.debug("sending response", fields)
        self.on_demand.answered(outcome)
        if self._session.is_ready:
            self.synced.set()
        await self._send(call, answer)
        return True

    def _ask(self, name: str) -> bool:
        """Asks for an address, now or once there is a stream; false if that was done before."""
        request = self._session.demand(name)
        if request is None:
            return False
        if self._call is None:
            self._unsent.append(request)
        else:
            self._tasks.spawn(self._sent(self._call, request))
        return True

    async def _sent(self, call: Call, request: DeltaDiscoveryRequest) -> None:
        """Sends a question; if the stream is at its end, the next one will ask it."""
        with contextlib.suppress(RpcError):
            await self._send(call, request)

    async def _send(self, call: Call, request: DeltaDiscoveryRequest) -> None:
        """Sends a request, after others that are being sent."""
        async with self._sending:
            await call.send(request.SerializeToString())


def _tell(ending: Exception | None, retry: backoff.Retry) -> None:
    seconds = retry.pause_s
    wait = f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"
    match retry.reason:
        case "Complete":
            log.warn("XDS client complete")
        case "Reconnect":
            log.debug(f"XDS client terminated: {ending}, retrying in {wait}")
        case "ConnectionError":
            log.warn(f"XDS client connection error: {ending}, retrying in {wait}")
        case _:
            log.warn(f"XDS client error: {ending}, retrying in {wait}")
