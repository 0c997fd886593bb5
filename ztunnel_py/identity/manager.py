# SPDX-License-Identifier: Apache-2.0
"""Keeps one certificate per identity: fetched once however many ask, renewed at half its life.

Renewal is driven by the askers. Whoever asks when half of a life has passed fetches anew while
the others go on with the old one, which stays in use until it expires if the authority fails.
Source: spec identity-ops, section A.4.
"""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.identity.ca import IdentityError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.identity.ca import CertificateAuthority
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 150.0
_FETCHES_AT_ONCE = 8


class CertificateState(enum.Enum):
    """How an identity stands; the values are those of dumps."""

    INITIALIZING = "Initializing"
    AVAILABLE = "Available"
    UNAVAILABLE = "Unavailable"


class CertificateStatus(NamedTuple):
    """One identity, for the dump."""

    identity: Identity
    state: CertificateState
    certificate: WorkloadCertificate | None
    error: str


@dataclass(slots=True)
class _Entry:
    certificate: WorkloadCertificate | None = None
    error: str = ""
    retry_at: float = 0.0
    retry_s: float = _FIRST_RETRY_S
    fetching: asyncio.Future[None] | None = None


class SecretManager:
    """The certificates of this process's workloads."""

    def __init__(
        self, authority: CertificateAuthority, now: Callable[[], float] = time.time
    ) -> None:
        """Certificates from `authority`; `now` tells Unix seconds."""
        self._authority = authority
        self._now = now
        self._entries: dict[Identity, _Entry] = {}
        self._slots = asyncio.Semaphore(_FETCHES_AT_ONCE)

    async def get(self, identity: Identity) -> WorkloadCertificate:
        """The certificate of `identity`, waiting for its first fetch.

        Raises:
            IdentityError: there is none; also at once while a failure is not due for a retry.
        """
        entry = self._entries.setdefault(identity, _Entry())
        while True:
            current = self._usable(entry)
            if entry.fetching is None and self._is_due(entry):
                await self._fetch(identity, entry)
            elif current is None and entry.fetching is not None:
                # Shielded: one waiter that gives up must not end the fetch of the others.
                await asyncio.shield(entry.fetching)
            elif current is not None:
                return current
            else:
                raise IdentityError(entry.error)

    def statuses(self) -> list[CertificateStatus]:
        """All identities, by name."""
        return [
            CertificateStatus(identity, _state(entry), entry.certificate, entry.error)
            for identity, entry in sorted(self._entries.items(), key=lambda item: str(item[0]))
        ]

    def forget(self, identity: Identity) -> None:
        """Drop a certificate that no workload needs any more."""
        self._entries.pop(identity, None)

    def _usable(self, entry: _Entry) -> WorkloadCertificate | None:
        certificate = entry.certificate
        return certificate if certificate and self._now() < certificate.not_after else None

    def _is_due(self, entry: _Entry) -> bool:
        now = self._now()
        is_old = entry.certificate is None or now >= entry.certificate.refresh_at
        return is_old and now >= entry.retry_at

    async def _fetch(self, identity: Identity, entry: _Entry) -> None:
        """Ask the authority once; a failure is noted in the entry, with the time of a retry."""
        entry.fetching = asyncio.get_running_loop().create_future()
        try:
            async with self._slots:
                entry.certificate = await self._authority.issue(identity)
            entry.error, entry.retry_s = "", _FIRST_RETRY_S
            # A certificate that arrives half expired must not be asked for in a tight loop.
            entry.retry_at = self._now() + _FIRST_RETRY_S
        except IdentityError as error:
            entry.error = str(error)
            entry.retry_at = self._now() + entry.retry_s
            entry.retry_s = min(entry.retry_s * 2, _LAST_RETRY_S)
            if self._usable(entry) is None:
                entry.certificate = None
        finally:
            entry.fetching.set_result(None)
            entry.fetching = None


def _state(entry: _Entry) -> CertificateState:
    if entry.certificate is not None:
        return CertificateState.AVAILABLE
    return CertificateState.UNAVAILABLE if entry.error else CertificateState.INITIALIZING
