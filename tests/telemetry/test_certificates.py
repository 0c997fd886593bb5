# SPDX-License-Identifier: Apache-2.0
"""Metrics of certificates, as a scraper reads them."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ztunnel_py.identity.certificates import WorkloadCertificate
from ztunnel_py.identity.manager import CertificateState, CertificateStatus
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.telemetry.certificates import families
from ztunnel_py.telemetry.exposition import render

CART, PRICES = (Identity("cluster.local", "shop", name) for name in ("cart", "prices"))
NOW = 1_800_000_000.0


def test_each_identity_tells_expiry_age_and_failures() -> None:
    certificate = WorkloadCertificate(CART, b"", b"", b"", NOW - 600.9, NOW + 3000.9)
    statuses = [
        CertificateStatus(CART, CertificateState.AVAILABLE, certificate, "", 2),
        CertificateStatus(PRICES, CertificateState.UNAVAILABLE, None, "no", 5),
    ]

    text = render(families(statuses, NOW))

    samples = {
        (sample.name, sample.labels["identity"]): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    assert samples == {
        ("istio_certificate_expiry_seconds", str(CART)): 3000,
        ("istio_certificate_age_seconds", str(CART)): 600,
        ("istio_certificate_failures_total", str(CART)): 2,
        ("istio_certificate_failures_total", str(PRICES)): 5,
    }
