# SPDX-License-Identifier: Apache-2.0
"""The newest message of an agent's stream, which is opened again whenever it ends."""

from __future__ import annotations

import asyncio
import random
import traceback
from typing import TYPE_CHECKING

from ztunnel_py.clock import pause, within
from ztunnel_py.identity.backoff import Backoff
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.rpc.errors import RpcError
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.clock import Clock
    from ztunnel_py.rpc.channel import Channel

_FIRST_MESSAGE_S = 30.0

log = logger("ztunnel::identity::agent")


class Subscription:
    """One stream of a SPIRE agent."""

    def __init__(
        self,
        channel: Channel,
        path: str,
        request: bytes,
        clock: Clock,
        changed: Callable[[], bool],
    ) -> None:
        """A stream that `run` opens.

        Args:
            channel: to the agent.
            path: the method.
            request: asked for.
            clock: for delays.
            changed: told of each message; False if nobody needs any more.
        """
        self._channel = channel
        self._path = path
        self._request = request
        self._clock = clock
        self._changed = changed
        self._message = b""
        self._error = ""
        self._settled = asyncio.Event()

    async def newest(self) -> bytes:
        """The newest message, waiting for the first.

        Raises:
            IdentityError: the stream is broken, or there was no message in time.
        """
        try:
            await within(self._clock, _FIRST_MESSAGE_S, self._settled.wait())
        except TimeoutError as error:
            raise IdentityError(f"no answer from the agent at {self._channel}") from error
        if self._error:
            raise IdentityError(f"agent at {self._channel}: {self._error}")
        return self._message

    async def run(self) -> None:
        """Receives until nobody needs any more."""
        backoff = None
        while True:
            try:
                async with self._channel.call(self._path) as call:
                    await call.send(self._request, end=True)
                    while (message := await call.receive()) is not None:
                        backoff = None
                        self._settle(message, "")
                        if not self._changed():
                            return
                error = "it ended the stream"
            except RpcError as failed:
                error = str(failed)
            except Exception as failed:  # whatever it is, the agent is asked again
                stack = "".join(traceback.format_exception(failed))
                log.error("a stream of the agent failed", {"stack": stack})
                error = f"internal error: {failed!r}"
            if error != self._error:
                fields = {"path": self._path, "error": Display(error)}
                log.warn(f"stream of the agent at {self._channel} is broken", fields)
            self._settle(self._message, error)
            backoff = backoff or Backoff(self._clock.now(), random.random)
            await pause(self._clock, backoff.delay(self._clock.now()))

    def _settle(self, message: bytes, error: str) -> None:
        self._message, self._error = message, error
        self._settled.set()
