# SPDX-License-Identifier: Apache-2.0
"""Readiness: which start-up tasks are pending, and `/healthz/ready` on 15021.

Source: spec identity-ops, section D.5; ztunnel src/readiness.rs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ztunnel_py.admin.http import NOT_ALLOWED, Answer, HttpServer
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ztunnel_py.admin.http import Request

_log = logger("ztunnel::readiness")


class Readiness:
    """The set of pending tasks. Ready when it is empty."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = now()
        self._pending: set[str] = set()

    def register(self, name: str) -> None:
        """Adds a task to wait for."""
        self._pending.add(name)

    def done(self, name: str) -> None:
        """A task is complete; a name that is not pending is a mistake of the caller.

        Raises:
            KeyError: it is not pending.
        """
        self._pending.remove(name)
        left = len(self._pending)
        next_ = f"still awaiting {left} tasks" if left else "marking server ready"
        elapsed_ms = (self._now() - self._started) * 1000
        _log.info(f"Task '{name}' complete ({elapsed_ms:.1f}ms), {next_}")

    def set(self, name: str, *, is_done: bool) -> None:
        """A task that may become pending again is complete, or is not."""
        if not is_done:
            self.register(name)
        elif name in self._pending:
            self.done(name)

    @property
    def pending(self) -> list[str]:
        """Names of pending tasks, sorted."""
        return sorted(self._pending)


def readiness_server(readiness: Readiness, addresses: Sequence[tuple[str, int]]) -> HttpServer:
    """The server that probes ask."""

    def answer(request: Request) -> Answer:
        if request.method != "GET":
            return NOT_ALLOWED
        pending = readiness.pending
        if pending:
            return Answer(500, f"not ready, pending: {', '.join(pending)}\n")
        return Answer(200, "ready\n")

    return HttpServer("readiness", addresses, {"/healthz/ready": answer})
