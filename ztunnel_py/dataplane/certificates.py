# SPDX-License-Identifier: Apache-2.0
"""Gives the engine each local workload's certificate, and the next one in time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.dataplane.abc import DataPlane
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.manager import SecretManager
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.tasks import Tasks

_RETRY_S = 10.0

log = logger("ztunnel::identity")


class Certificates:
    """What the engine holds; a workload only ever gets the certificate of its own identity."""

    def __init__(
        self, plane: DataPlane, manager: SecretManager, clock: Clock, tasks: Tasks
    ) -> None:
        self._plane = plane
        self._manager = manager
        self._clock = clock
        self._tasks = tasks
        self._held: dict[str, tuple[Identity, WorkloadCertificate]] = {}
        self._renewals: dict[str, Timer] = {}

    def has(self, workload: str, identity: Identity) -> bool:
        """The engine holds a certificate for this identity that has not expired."""
        held = self._held.get(workload)
        return held is not None and held[0] == identity and time.time() < held[1].not_after

    async def provide(self, workload: str, identity: Identity) -> None:
        """Sees to it that the engine holds a certificate.

        Raises:
            IdentityError: there is none to be had now.
        """
        certificate = await self._manager.get(identity)
        if self._held.get(workload) != (identity, certificate):
            try:
                self._plane.identity_set(workload, certificate)
            except (OSError, ValueError) as error:
                raise IdentityError(f"the certificate cannot be used: {error}") from error
            self._held[workload] = identity, certificate
        self._schedule(workload, identity, certificate)

    def stop(self) -> None:
        """Renews nothing any more."""
        for timer in self._renewals.values():
            timer.cancel()
        self._renewals.clear()

    def _schedule(
        self, workload: str, identity: Identity, certificate: WorkloadCertificate
    ) -> None:
        if workload in self._renewals:
            self._renewals[workload].cancel()
        delay = certificate.refresh_at - time.time()
        self._renewals[workload] = self._clock.call_later(
            delay if delay > 0 else _RETRY_S,
            lambda: self._tasks.spawn(self._renew(workload, identity, certificate)),
        )

    async def _renew(self, workload: str, identity: Identity, old: WorkloadCertificate) -> None:
        try:
            await self.provide(workload, identity)
        except IdentityError as error:
            log.warn(f"renewal failed: {error}", {"identity": Display(str(identity))})
            self._schedule(workload, identity, old)
