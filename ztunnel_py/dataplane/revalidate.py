# SPDX-License-Identifier: Apache-2.0
"""Ends live connections that a change of policy no longer allows.

A verdict admits; what it admitted lives on. So after each change of what an authorization reads,
every live inbound connection is decided again for its *complete* key, and ended if that is a
denial now. Meanwhile nothing stale can admit: the epoch moved first (epochs.py). Whatever cannot be
decided is ended, too.

There may be many: keys are taken in slices of a few milliseconds, and the loop serves questions
between them. A change that comes while the keys are looked at starts one more round, not several.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from typing import TYPE_CHECKING

from ztunnel_py.decide.key import PassthroughKey
from ztunnel_py.decide.verdict import Action
from ztunnel_py.errors import Reason
from ztunnel_py.state.store import Change
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ztunnel_py.dataplane.abc import DataPlane
    from ztunnel_py.dataplane.upcalls import Upcalls
    from ztunnel_py.decide.key import InboundKey
    from ztunnel_py.state.store import Store
    from ztunnel_py.tasks import Tasks

    Key = InboundKey | PassthroughKey

SLICE_S = 0.005

log = logger("ztunnel::state")


class Revalidate:
    """Decides again for one engine.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        plane: DataPlane,
        store: Store,
        upcalls: Upcalls,
        tasks: Tasks,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plane = plane
        self._store = store
        self._upcalls = upcalls
        self._tasks = tasks
        self._now = now
        self._is_due = False
        self._is_running = False
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Watches from now on."""
        self._unsubscribe = self._store.subscribe(self._changed)

    def stop(self) -> None:
        """Watches no more; a round that runs ends at its next slice."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _changed(self, change: Change) -> None:
        if Change.POLICY not in change:
            return
        self._is_due = True
        if not self._is_running:
            self._is_running = True
            self._tasks.essential("deciding live connections again", self._run())

    async def _run(self) -> None:
        try:
            while self._is_due and self._unsubscribe is not None:
                self._is_due = False
                for workload in self._upcalls.workloads():
                    await self._look_at(workload)
        finally:
            self._is_running = False

    async def _look_at(self, workload: str) -> None:
        """One workload's connections, slice by slice."""
        keys = self._plane.live_keys(workload)
        judged: dict[Key, bool] = {}
        doomed: list[int] = []
        ends_at = self._now() + SLICE_S
        for conn in keys:
            if not self._may_stay(keys, conn, judged):
                doomed.append(conn)
            if self._now() >= ends_at:
                self._end(doomed)
                await asyncio.sleep(0)
                if self._unsubscribe is None:
                    return
                ends_at = self._now() + SLICE_S
        self._end(doomed)

    def _may_stay(self, keys: Mapping[int, Key], conn: int, judged: dict[Key, bool]) -> bool:
        try:
            key = keys[conn]
            if key not in judged:
                judged[key] = self._is_allowed(key)
            return judged[key]
        except Exception as error:  # who cannot be judged does not stay
            stack = "".join(traceback.format_exception(error))
            log.error("a decision failed", {"conn": f"{conn:016x}", "stack": stack})
            return False

    def _is_allowed(self, key: Key) -> bool:
        verdict = self._upcalls.decide(key)
        if verdict.action is not Action.DENY:
            return True
        reason = verdict.reason.describe(verdict.detail)
        log.info(f"no longer allowed after a policy update: {_text(key)}", {"error": reason})
        return False

    def _end(self, doomed: list[int]) -> None:
        if doomed:
            self._plane.conn_kill(doomed, Reason.POLICY_CHANGED)
            doomed.clear()


def _text(key: Key) -> str:
    """Who calls what."""
    if isinstance(key, PassthroughKey):
        return f"{key.src}->{key.dst}"
    return f"{key.src}({key.identity})->{key.authority}"
