# SPDX-License-Identifier: Apache-2.0
"""A workload's certificate with its key and its roots, and how dumps show certificates."""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ztunnel_py.identity.spiffe import Identity


@dataclass(frozen=True, slots=True)
class WorkloadCertificate:
    """What a workload proves its identity with, and whom it trusts. Times in Unix seconds."""

    identity: Identity
    chain_pem: bytes
    """The leaf first, then intermediates, without the root."""
    key_pem: bytes = field(repr=False)
    """PKCS#8; in memory only."""
    roots_pem: bytes
    not_before: float
    not_after: float

    @property
    def refresh_at(self) -> float:
        """When half of its life has passed."""
        if self.not_after < self.not_before:
            return self.not_after
        return self.not_before + (self.not_after - self.not_before) / 2


class CertificateView(NamedTuple):
    """One certificate as `/config_dump` shows it."""

    pem: str
    """Base64 of the PEM text."""
    serial_number: str
    valid_from: str
    expiration_time: str


def views(pem: bytes) -> list[CertificateView]:
    """The certificates in `pem`, in their order. Cost: parses each."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return [
        CertificateView(
            base64.b64encode(certificate.public_bytes(Encoding.PEM)).decode(),
            str(certificate.serial_number),
            _rfc3339(certificate.not_valid_before_utc),
            _rfc3339(certificate.not_valid_after_utc),
        )
        for certificate in (x509.load_pem_x509_certificates(pem) if pem.strip() else [])
    ]


def rfc3339(seconds: float) -> str:
    """Unix seconds as dumps and logs show times."""
    return _rfc3339(datetime.datetime.fromtimestamp(seconds, datetime.UTC))


def _rfc3339(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
