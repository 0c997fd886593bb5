# SPDX-License-Identifier: Apache-2.0
"""The connection to the CNI agent, which is made again and again.

Every message is answered before the next one is read. Source: spec identity-ops, sections B.1, B.3
and B.6; ztunnel src/inpod/workloadmanager.rs.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from ztunnel_py.clock import pause
from ztunnel_py.inpod import zds
from ztunnel_py.inpod.manager import ProtocolError
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ztunnel_py.clock import Clock
    from ztunnel_py.inpod.manager import Manager

FIRST_BACKOFF_S, MOST_BACKOFF_S = 0.01, 15.0

log = logger("ztunnel::inpod")


class Client:
    """Hears of pods from the agent whose socket is at `path`."""

    def __init__(self, path: Path, manager: Manager, clock: Clock) -> None:
        self._path = path
        self._manager = manager
        self._clock = clock
        self._running: asyncio.Task[None] | None = None

    async def run(self, give_up: Callable[[str], None]) -> None:
        """Connects again and again, until it is stopped.

        If the agent breaks the rules, it is told so, and `give_up` why the program cannot go on.
        """
        self._running = asyncio.current_task()
        try:
            await self._connect()
        except ProtocolError as error:
            give_up(f"the node agent broke the protocol: {error}")

    def stop(self) -> None:
        """Hears no more; who runs goes on."""
        if self._running is not None:
            self._running.cancel()

    async def _connect(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            is_of_use = await self._converse()
            backoff_s = FIRST_BACKOFF_S if is_of_use else min(MOST_BACKOFF_S, 2 * backoff_s)
            if not is_of_use:
                await pause(self._clock, backoff_s)

    async def _converse(self) -> bool:
        """One connection from begin to end; whether the agent had something to say."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(str(self._path))
                sock.send(zds.HELLO)
            except OSError as error:
                log.warn(f"cannot connect to the node agent at {self._path}: {error}; is it up?")
                return False
            log.info(f"connected to the node agent at {self._path}")
            self._manager.begin()
            n_heard = 0
            try:
                while (message := await _next(sock)) is not None:
                    n_heard += 1
                    self._answer(sock, message)
                log.info("the node agent has closed the connection")
            except zds.ReadError as error:
                n_heard += 1
                _say(sock, f"failure to read message : {error}")
                log.warn(f"failure to read message : {error}")
            except OSError as error:
                log.warn(f"the connection to the node agent broke: {error}")
            finally:
                self._manager.end()
        return n_heard > 0

    def _answer(self, sock: socket.socket, message: zds.Message) -> None:
        try:
            problem = self._manager.take(message)
        except ProtocolError as error:
            _say(sock, f"protocol error: {error}")
            raise
        sock.send(zds.answer(problem))


def _say(sock: socket.socket, problem: str) -> None:
    """Tells a connection that is given up what is wrong."""
    try:
        sock.send(zds.answer(problem))
    except OSError as error:
        log.debug(f"the node agent could not be told: {error}")


async def _next(sock: socket.socket) -> zds.Message | None:
    """The next message, waited for; None at the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return zds.receive(sock)
        except BlockingIOError:
            pass
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock, _wake, readable)
        try:
            await readable
        finally:
            loop.remove_reader(sock)


def _wake(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
