# SPDX-License-Identifier: Apache-2.0
"""Keeps the engine's revocation lists those of a file, which may come, change and go.

The file is looked at once a second and read when it has changed and then stayed the same for a
second, so that one that is being written is left alone. Looking finds what notifications miss: a
file behind links that are swapped, as Kubernetes does, or in a directory that is not there yet. One
that cannot be used changes nothing. Source: spec identity-ops, A.10.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ztunnel_py.clock import pause
from ztunnel_py.identity import crl
from ztunnel_py.stamp import Stamp
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import DataPlane
    from ztunnel_py.tasks import Tasks

LOOK_S = 1.0

log = logger("ztunnel::tls")


class Revocations:
    """The lists of one file, in force for all workloads."""

    def __init__(self, plane: DataPlane, path: Path, clock: Clock, tasks: Tasks) -> None:
        self._plane = plane
        self._path = path
        self._clock = clock
        self._tasks = tasks

    async def start(self) -> None:
        """Has what is there used, before anybody is served; then watches until tasks are stopped.

        Without a file that can be used nothing is revoked, until there is one.
        """
        seen = Stamp.of(self._path)
        await self._use()
        self._tasks.essential("watching revocations", self._watch(seen))

    async def _watch(self, used: Stamp | None) -> None:
        seen = used
        while True:
            await pause(self._clock, LOOK_S)
            before, seen = seen, Stamp.of(self._path)
            if seen == before != used:
                used = seen
                await self._use()

    async def _use(self) -> None:
        fields = {"path": Display(str(self._path))}
        try:
            lists = await asyncio.to_thread(crl.load, self._path)
            ended = await self._plane.revocations_set(lists)
        except FileNotFoundError:
            log.warn("no revocation lists: the file is not there", fields)
        except (OSError, crl.CrlError, ValueError) as error:
            log.warn(f"revocation lists cannot be used, those of before stay: {error}", fields)
        else:
            log.info("revocation lists in force", {**fields, "lists": len(lists)})
            if ended:
                log.warn("connections to revoked certificates ended", {"connections": ended})
