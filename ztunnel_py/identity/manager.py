# SPDX-License-Identifier: Apache-2.0
"""Keeps one certificate per identity: fetched once however many ask, renewed at half its life.

An identity is *initializing* until its first fetch has ended; who asks meanwhile waits. Then it is
*available*, or *unavailable* with the last error, and whoever asks is answered at once. Only
timers fetch again: at half of a certificate's life, and some time after a failure. A certificate
whose renewal fails serves on until it expires.

A few fetches run at once, the most urgent first. Wall-clock steps move nothing: the time of day
is read once, at the start. Source: spec identity-ops, section A.4; ztunnel src/identity/manager.rs.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import itertools
import random
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.identity.backoff import Backoff
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.certificates import rfc3339
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.identity.ca import CertificateAuthority
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.tasks import Tasks

    Listener = Callable[[WorkloadCertificate], None]

_FETCHES_AT_ONCE = 8
_FORGOTTEN = "the identity is no longer needed"
_OVERDUE = 0.75
"""Of a certificate's life: when a renewal that was due at half of it deserves a warning."""

log = logger("ztunnel::identity::manager")


class CertificateState(enum.Enum):
    """How an identity stands; the values are those of dumps."""

    INITIALIZING = "Initializing"
    AVAILABLE = "Available"
    UNAVAILABLE = "Unavailable"


class Priority(enum.IntEnum):
    """How urgent a fetch is."""

    BACKGROUND = 0
    """A renewal, or another try."""
    WARM_UP = 1
    """Somebody is going to need it."""
    REAL_TIME = 2
    """A connection waits."""


class CertificateStatus(NamedTuple):
    """One identity, for dump and metrics."""

    identity: Identity
    state: CertificateState
    certificate: WorkloadCertificate | None
    error: str
    n_failures: int = 0
    """Fetches that have failed since the identity is known."""


@dataclass(slots=True, eq=False)
class _Entry:
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """The first fetch has ended, or nobody needs it any more."""
    certificate: WorkloadCertificate | None = None
    error: str = ""
    n_failures: int = 0
    backoff: Backoff | None = None
    queued: Priority | None = None
    timer: Timer | None = None
    is_overdue: bool = False
    """The certificate's renewal has been complained about."""


class SecretManager:
    """The certificates of this process's workloads."""

    def __init__(
        self,
        authority: CertificateAuthority,
        clock: Clock,
        tasks: Tasks,
        wall: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Certificates from `authority`; `wall` tells Unix seconds, `draw` a number from 0 to 1."""
        self._authority = authority
        self._clock = clock
        self._tasks = tasks
        self._draw = draw
        self._epoch = wall() - clock.now()
        self._entries: dict[Identity, _Entry] = {}
        self._queue: list[tuple[int, int, Identity, _Entry]] = []
        self._order = itertools.count()
        self._fetching: set[Identity] = set()
        self._again: set[Identity] = set()
        """Those that something new may have come for while they were fetched."""
        self._listeners: list[Listener] = []

    def now(self) -> float:
        """Unix seconds, as of this process's start and its monotonic clock."""
        return self._epoch + self._clock.now()

    def follow(self, listener: Listener) -> None:
        """Calls `listener` with every new certificate."""
        self._listeners.append(listener)

    async def get(
        self, identity: Identity, priority: Priority = Priority.REAL_TIME
    ) -> WorkloadCertificate:
        """The certificate of `identity`, waiting for its first fetch.

        Raises:
            IdentityError: there is none, or the identity was forgotten meanwhile.
        """
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = _Entry()
        if not entry.settled.is_set():
            self._enqueue(identity, entry, priority)
            await entry.settled.wait()
        if entry.certificate is None:
            raise IdentityError(entry.error)
        if not self._is_valid(entry.certificate):
            raise IdentityError(f"the certificate expired {_expiry(entry.certificate)}")
        return entry.certificate

    def renew(self, identity: Identity) -> bool:
        """Fetches anew, soon, as the authority may have something new; False if nobody needs it."""
        entry = self._entries.get(identity)
        if entry is None:
            return False
        if identity in self._fetching:
            self._again.add(identity)
        elif entry.settled.is_set():
            self._enqueue(identity, entry, Priority.BACKGROUND)
        return True

    def forget(self, identity: Identity) -> None:
        """Drops a certificate that no workload needs any more; who waits for it is told so."""
        entry = self._entries.pop(identity, None)
        if entry is not None:
            self._cancel(entry)
            entry.certificate, entry.error = None, _FORGOTTEN
            entry.settled.set()

    def identities(self) -> list[Identity]:
        """All that are kept or being fetched, in no order."""
        return list(self._entries)

    def statuses(self) -> list[CertificateStatus]:
        """All identities, by name."""
        return [
            CertificateStatus(
                identity, _state(entry), entry.certificate, entry.error, entry.n_failures
            )
            for identity, entry in sorted(self._entries.items(), key=lambda item: str(item[0]))
        ]

    def stop(self) -> None:
        """Begins no fetch any more."""
        self._queue.clear()
        for entry in self._entries.values():
            self._cancel(entry)

    # --- what is fetched next

    def _enqueue(self, identity: Identity, entry: _Entry, priority: Priority) -> None:
        """Queues a fetch, or moves it forward; not if it is on its way."""
        if identity in self._fetching:
            return
        if entry.queued is None or entry.queued < priority:
            self._cancel(entry)
            entry.queued = priority
            heapq.heappush(self._queue, (-priority, next(self._order), identity, entry))
            self._pump()

    def _pump(self) -> None:
        while self._queue and len(self._fetching) < _FETCHES_AT_ONCE:
            urgency, _, identity, entry = heapq.heappop(self._queue)
            # What was moved forward or forgotten is still in the queue as it was.
            if entry.queued == -urgency and self._entries.get(identity) is entry:
                entry.queued = None
                self._fetching.add(identity)
                self._tasks.spawn(self._fetch(identity))

    def _schedule(self, identity: Identity, entry: _Entry, at: float) -> None:
        self._cancel(entry)
        entry.timer = self._clock.call_later(
            max(at - self.now(), 0),
            lambda: self._enqueue(identity, entry, Priority.BACKGROUND),
        )

    @staticmethod
    def _cancel(entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    # --- what comes of it

    async def _fetch(self, identity: Identity) -> None:
        """Asks the authority once; an identity forgotten meanwhile gets nothing."""
        try:
            certificate = await self._authority.issue(identity)
            if not self._is_valid(certificate):
                raise IdentityError(
                    "the authority's certificate has already expired; does this node's clock "
                    "agree with the authority's?"
                )
            self._succeeded(identity, certificate)
        except IdentityError as error:
            self._failed(identity, str(error))
        except Exception as error:  # what fails in any other way is tried again as well
            log.error("a fetch failed", {"stack": "".join(traceback.format_exception(error))})
            self._failed(identity, f"internal error: {error!r}")
        finally:
            self._fetching.discard(identity)
            if identity in self._again:
                self._again.discard(identity)
                self.renew(identity)
            self._pump()

    def _succeeded(self, identity: Identity, certificate: WorkloadCertificate) -> None:
        entry = self._entries.get(identity)
        if entry is None:
            return
        if entry.error:
            log.info("certificate fetched after failures", {"id": Display(identity)})
        is_new = certificate != entry.certificate
        if is_new:
            entry.certificate, entry.is_overdue = certificate, False
        entry.error = ""
        if certificate.refresh_at > self.now():
            entry.backoff = None
            self._schedule(identity, entry, certificate.refresh_at)
        else:  # it is half expired, as one from a file may be: not asked for in a tight loop
            self._schedule(identity, entry, self._retry_at(entry))
            self._warn_if_overdue(identity, entry)
        entry.settled.set()
        if is_new:
            for listener in self._listeners:
                listener(certificate)

    def _failed(self, identity: Identity, error: str) -> None:
        entry = self._entries.get(identity)
        if entry is None:
            return
        retry_at = self._retry_at(entry)
        if entry.certificate is not None and not self._is_valid(entry.certificate):
            entry.certificate = None
            entry.error = ""  # that the certificate is gone is news
        self._complain(identity, entry, error)
        self._warn_if_overdue(identity, entry)
        entry.error = error
        entry.n_failures += 1
        entry.settled.set()
        self._schedule(identity, entry, retry_at)

    def _complain(self, identity: Identity, entry: _Entry, error: str) -> None:
        """Logs each error once."""
        fields = {"id": Display(identity), "error": Display(error)}
        if error == entry.error:
            return
        if entry.certificate is None:
            log.warn("certificate fetch failed and there is no valid one", fields)
        else:
            fields["valid_until"] = Display(rfc3339(entry.certificate.not_after))
            log.warn("certificate renewal failed; the present one stays in use", fields)

    def _warn_if_overdue(self, identity: Identity, entry: _Entry) -> None:
        """Warns once of each certificate that should have been replaced long ago."""
        certificate = entry.certificate
        if certificate is None or entry.is_overdue or self._age(certificate) < _OVERDUE:
            return
        entry.is_overdue = True
        log.warn(
            f"certificate renewal is overdue; it expires {_expiry(certificate)}",
            {"id": Display(identity)},
        )

    def _retry_at(self, entry: _Entry) -> float:
        """When to try again; at the latest when the certificate expires."""
        now = self.now()
        if entry.backoff is None:
            entry.backoff = Backoff(now, self._draw)
        retry_at = now + entry.backoff.delay(now)
        if entry.certificate is not None and self._is_valid(entry.certificate):
            return min(retry_at, entry.certificate.not_after)
        return retry_at

    def _is_valid(self, certificate: WorkloadCertificate) -> bool:
        return self.now() < certificate.not_after

    def _age(self, certificate: WorkloadCertificate) -> float:
        """How much of its life has passed, from 0 to 1."""
        life = certificate.not_after - certificate.not_before
        return (self.now() - certificate.not_before) / life if life > 0 else 1.0


def _state(entry: _Entry) -> CertificateState:
    if entry.certificate is not None:
        return CertificateState.AVAILABLE
    return CertificateState.UNAVAILABLE if entry.settled.is_set() else CertificateState.INITIALIZING


def _expiry(certificate: WorkloadCertificate) -> str:
    return f"at {rfc3339(certificate.not_after)}"
