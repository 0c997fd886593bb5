# SPDX-License-Identifier: Apache-2.0
"""When the program ends: signals, and the drain with its deadline.

Source: spec identity-ops, section D.6, and dataplane, section 10.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING

from ztunnel_py import netns
from ztunnel_py.clock import pause, within
from ztunnel_py.dataplane.abc import DrainMode
from ztunnel_py.errors import StartError
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import DataPlane

STEP_ASIDE_S = 0.2
"""A few round trips between nodes."""

log = logger("ztunnel::app")


class Shutdown:
    """Somebody wants the program to end, gracefully."""

    def __init__(self, flush_logs: Callable[[], None]) -> None:
        self._flush_logs = flush_logs
        self._wanted = asyncio.Event()
        self._was_interrupted = False
        self._failure: StartError | None = None

    def install(self) -> None:
        """Handles SIGTERM and SIGINT, once there is something to end in order.

        Until then a signal ends us at once (`start`).
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.request, "SIGTERM")
        loop.add_signal_handler(signal.SIGINT, self._interrupt)

    def request(self, why: str) -> None:
        """Begins the shutdown; again is the same."""
        if not self._wanted.is_set():
            log.info(f"received {why}, shutting down")
            self._wanted.set()

    def fail(self, why: str) -> None:
        """The program cannot go on: it ends at once, with an error."""
        self._failure = self._failure or StartError(why)
        self._wanted.set()

    async def wanted(self) -> None:
        """Returns when the program is to end.

        Raises:
            StartError: it ends because something failed.
        """
        await self._wanted.wait()
        if self._failure is not None:
            raise self._failure

    async def comes_before(self, event: asyncio.Event) -> bool:
        """Waits for either; whether the program is to end and `event` has not been set."""
        waits = [asyncio.ensure_future(one.wait()) for one in (self._wanted, event)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not event.is_set()

    def _interrupt(self) -> None:
        if self._was_interrupted:
            self._flush_logs()
            os._exit(0)
        self._was_interrupted = True
        self.request("SIGINT")


async def drain(plane: DataPlane, clock: Clock, deadline_s: float) -> None:
    """Lets connections finish for `deadline_s`, then ends them.

    In pods another proxy may have taken our place. It gets the new connections first, so that those
    whose handshake is under way are not lost with our listeners.
    """
    plane.step_aside()
    await pause(clock, min(STEP_ASIDE_S, deadline_s))
    plane.drain(None, DrainMode.GRACEFUL)
    try:
        await within(clock, deadline_s, plane.drained())
    except TimeoutError:
        log.warn("drain duration expired with pending connections, forcefully shutting down")


def check_namespaces(mark: int | None) -> None:
    """Tries what serving pods takes: to enter a network namespace, and to mark sockets.

    Raises:
        StartError: naming the capability that is missing.
    """
    try:
        home = netns.current()
        with netns.inside(home):
            pass
    except OSError as error:
        raise StartError(f"PROXY_MODE=shared needs CAP_SYS_ADMIN: {error}") from error
    if mark is None:
        return
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        except OSError as error:
            text = "PROXY_MODE=shared needs CAP_NET_ADMIN or CAP_NET_RAW to mark sockets"
            raise StartError(f"{text}: {error}") from error


def raise_file_limit() -> None:
    """Raises the soft limit of open files to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warn(f"failed to set file descriptor limits: {error}")
    else:
        log.info(f"set file descriptor limits from {soft} to {hard}")
