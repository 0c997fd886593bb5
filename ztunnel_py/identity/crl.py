# SPDX-License-Identifier: Apache-2.0
"""Reads revocation lists from a file: any number of them as PEM, or one as DER.

Source: spec identity-ops, A.10; ztunnel src/tls/crl.rs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 32 << 20
"""Of a file: some 800,000 revoked certificates."""
MAX_LISTS = 256

_BEGIN = b"-----BEGIN "
_BLOCK = re.compile(rb"-----BEGIN ([^-\r\n]+)-----\r?\n.*?-----END \1-----", re.DOTALL)
_LIST = b"X509 CRL"
_HASHES = {"sha256", "sha384", "sha512"}


class CrlError(Exception):
    """The file cannot be used; the text says why."""


def load(path: Path) -> tuple[bytes, ...]:
    """The lists in the file, DER, in their order; none if it is empty.

    Reads and parses, so not for the event loop: 10 ms per megabyte.

    Raises:
        OSError: the file cannot be read, or is not there.
        CrlError: it is too large, or not a single list of it may be used if one is broken.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise CrlError(f"{path} has more than {MAX_BYTES} bytes")
    try:
        lists = _parse(content)
        for number, one in enumerate(lists, 1):
            _check(number, one)
        return tuple(one.public_bytes(Encoding.DER) for one in lists)
    except CrlError as error:
        raise CrlError(f"{path}: {error}") from error


def _parse(content: bytes) -> list[x509.CertificateRevocationList]:
    if not content:
        return []
    try:
        if not content.startswith(_BEGIN.rstrip()):
            return [x509.load_der_x509_crl(content)]
        blocks = list(_BLOCK.finditer(content))
        if len(blocks) != content.count(_BEGIN):
            raise CrlError("a PEM block is not complete")
        lists = [block[0] for block in blocks if block[1] == _LIST]
        if len(lists) > MAX_LISTS:
            raise CrlError(f"more than {MAX_LISTS} lists")
        return [x509.load_pem_x509_crl(one) for one in lists]
    except (ValueError, x509.InvalidVersion) as error:
        raise CrlError(f"no revocation list: {error}") from error


def _check(number: int, one: x509.CertificateRevocationList) -> None:
    """Refuses a list whose meaning we do not know, or that anybody could have signed."""
    try:
        problem = _problem(one)
    except (ValueError, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        problem = str(error)
    if problem:
        raise CrlError(f"list {number}: {problem}")


def _problem(one: x509.CertificateRevocationList) -> str:
    used = one.signature_hash_algorithm  # None where the key alone says how to sign (Ed25519)
    if used is not None and used.name not in _HASHES:
        return f"signed with {used.name}"
    for extension in one.extensions:
        match extension.value:
            case x509.DeltaCRLIndicator():
                return "a delta list"
            case x509.IssuingDistributionPoint() as scope if (
                scope.indirect_crl
                or scope.only_contains_attribute_certs
                or scope.only_some_reasons is not None
            ):
                return "an indirect or partial list"
            case x509.UnrecognizedExtension() if extension.critical:
                return f"unknown critical extension {extension.oid.dotted_string}"
    return ""
