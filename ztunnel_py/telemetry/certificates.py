# SPDX-License-Identifier: Apache-2.0
"""Metrics of certificates, ours: for how long each identity has one, and how often none was had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ztunnel_py.telemetry import catalogue
from ztunnel_py.telemetry.exposition import Family, Sample, labels_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Validity(Protocol):
    """When a certificate is valid, in Unix seconds."""

    @property
    def not_before(self) -> float:
        """From when on."""

    @property
    def not_after(self) -> float:
        """Until when."""


class Status(Protocol):
    """How an identity stands."""

    @property
    def identity(self) -> object:
        """Its text is the label."""

    @property
    def certificate(self) -> Validity | None:
        """The one in use."""

    @property
    def n_failures(self) -> int:
        """Fetches that have failed."""


def families(statuses: Sequence[Status], now: float) -> Iterator[Family]:
    """Families by identity; those without a certificate have no expiry and no age."""
    held = [(_label(one), one.certificate) for one in statuses if one.certificate is not None]
    yield Family(
        catalogue.CERTIFICATE_EXPIRY,
        [Sample(label, int(found.not_after - now)) for label, found in held],
    )
    yield Family(
        catalogue.CERTIFICATE_AGE,
        [Sample(label, int(now - found.not_before)) for label, found in held],
    )
    yield Family(
        catalogue.CERTIFICATE_FAILURES,
        [Sample(_label(one), one.n_failures) for one in statuses],
    )


def _label(status: Status) -> str:
    return labels_text({"identity": str(status.identity)})
