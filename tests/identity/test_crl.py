# SPDX-License-Identifier: Apache-2.0
"""What counts as a file of revocation lists, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.authority import Authority, crl_pem
from tests.support.plane import CLIENT
from ztunnel_py.identity import crl

if TYPE_CHECKING:
    from pathlib import Path

ROOT, OTHER = Authority("root"), Authority("other")
FIRST, SECOND = ROOT.crl(more=[1, 2, 3]), OTHER.crl(more=[4])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is."""
    return tmp_path / "ca-crl.pem"


def scope(**what: object) -> x509.IssuingDistributionPoint:
    """A list that does not list everything."""
    nothing: dict[str, object] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**(nothing | what))  # type: ignore[arg-type]


ACCEPTED = {
    "one, DER": (FIRST, (FIRST,)),
    "one, PEM": (crl_pem(FIRST), (FIRST,)),
    "two, PEM": (crl_pem(FIRST, SECOND), (FIRST, SECOND)),
    "with other blocks": (ROOT.pem + crl_pem(FIRST) + ROOT.issue(CLIENT).key_pem, (FIRST,)),
    "lines that end as on DOS": (crl_pem(FIRST).replace(b"\n", b"\r\n"), (FIRST,)),
    "other blocks only": (ROOT.pem, ()),
    "empty": (b"", ()),
}


@pytest.mark.parametrize(("content", "lists"), ACCEPTED.values(), ids=ACCEPTED)
def test_file_is_read_as_its_lists(path: Path, content: bytes, lists: tuple[bytes, ...]) -> None:
    path.write_bytes(content)

    assert crl.load(path) == lists


def test_list_of_users_only_is_read(path: Path) -> None:
    path.write_bytes(ROOT.crl(extension=scope(only_contains_user_certs=True)))

    assert len(crl.load(path)) == 1


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
CERTIFICATE = x509.load_pem_x509_certificate(ROOT.pem).public_bytes(Encoding.DER)
REASONS = frozenset({x509.ReasonFlags.key_compromise})
REFUSED = {
    "garbage": (b"garbage", "no revocation list"),
    "PEM garbage": (b"-----BEGIN X509 CRL-----\n!!!\n-----END X509 CRL-----\n", "no revocation"),
    "DER, half": (FIRST[: len(FIRST) // 2], "no revocation list"),
    "DER and more": (FIRST + b"\0", "no revocation list"),
    "PEM, half": (crl_pem(FIRST, SECOND)[:-60], "not complete"),
    "second is broken": (crl_pem(FIRST) + crl_pem(SECOND).replace(b"M", b"N"), "no revocation"),
    "a certificate": (CERTIFICATE, "no revocation list"),
    "delta": (ROOT.crl(extension=x509.DeltaCRLIndicator(1)), "list 1: a delta list"),
    "indirect": (ROOT.crl(extension=scope(indirect_crl=True)), "indirect or partial"),
    "some reasons": (ROOT.crl(extension=scope(only_some_reasons=REASONS)), "indirect or partial"),
    "unknown critical extension": (ROOT.crl(extension=UNKNOWN), "critical extension 1.2.3.4"),
    "weak signature": (ROOT.crl(is_weak=True), "signed with sha224"),
    "too many": (crl_pem(FIRST) * (crl.MAX_LISTS + 1), "more than 256 lists"),
    "too large": (b"\0" * (crl.MAX_BYTES + 1), "more than 33554432 bytes"),
}


@pytest.mark.parametrize(("content", "why"), REFUSED.values(), ids=REFUSED)
def test_file_is_refused_whole_and_the_error_names_it(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)

    with pytest.raises(crl.CrlError, match=why) as raised:
        crl.load(path)

    assert str(path) in str(raised.value)


def test_file_that_is_not_there_is_another_matter(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        crl.load(path)


def test_long_list_is_read(path: Path) -> None:
    path.write_bytes(ROOT.crl(more=range(1, 100_001)))

    (one,) = crl.load(path)

    assert len(x509.load_der_x509_crl(one)) == 100_000
