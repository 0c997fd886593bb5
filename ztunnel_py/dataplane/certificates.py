# SPDX-License-Identifier: Apache-2.0
"""Gives the engine each local workload's certificate, and each newer one in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from ztunnel_py.dataplane.abc import DataPlane
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.manager import SecretManager
    from ztunnel_py.identity.spiffe import Identity

log = logger("ztunnel::identity")


class Certificates:
    """What the engine holds; a workload only ever gets the certificate of its own identity."""

    def __init__(self, plane: DataPlane, manager: SecretManager) -> None:
        self._plane = plane
        self._manager = manager
        self._held: dict[str, tuple[Identity, WorkloadCertificate]] = {}
        manager.follow(self._renewed)

    def has(self, workload: str, identity: Identity) -> bool:
        """The engine holds a certificate for this identity that has not expired."""
        held = self._held.get(workload)
        return held is not None and held[0] == identity and self._manager.now() < held[1].not_after

    async def provide(self, workload: str, identity: Identity) -> None:
        """Sees to it that the engine holds a certificate.

        Raises:
            IdentityError: there is none to be had now.
        """
        self._hold(workload, identity, await self._manager.get(identity))

    def forget(self, workload: str) -> None:
        """The engine holds nothing for it any more."""
        self._held.pop(workload, None)

    def _hold(self, workload: str, identity: Identity, certificate: WorkloadCertificate) -> None:
        if self._held.get(workload) == (identity, certificate):
            return
        try:
            self._plane.identity_set(workload, certificate)
        except (OSError, ValueError) as error:
            raise IdentityError(f"the certificate cannot be used: {error}") from error
        self._held[workload] = identity, certificate

    def _renewed(self, certificate: WorkloadCertificate) -> None:
        for workload, (identity, _) in list(self._held.items()):
            if identity == certificate.identity:
                try:
                    self._hold(workload, identity, certificate)
                except IdentityError as error:
                    log.warn(f"renewal failed: {error}", {"identity": Display(str(identity))})
