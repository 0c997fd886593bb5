# SPDX-License-Identifier: Apache-2.0
"""Puts a certificate together from what an authority, a file or an agent hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from ztunnel_py.identity.certificates import WorkloadCertificate
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_MOST_BYTES = 1 << 20
"""Of all certificates together; a chain has a few thousand."""


class ChainError(Exception):
    """These are no certificates that can be used; the text says what is wrong with them."""


def certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates in a PEM text.

    Raises:
        ChainError: one cannot be read, or there is none.
    """
    _check_size(pem)
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ChainError(f"certificate: {error}") from error


def der_certificates(der: bytes) -> list[x509.Certificate]:
    """All certificates in DER, one after the other.

    Raises:
        ChainError: one cannot be read.
    """
    _check_size(der)
    try:
        return [x509.load_der_x509_certificate(one) for one in _split(der)]
    except ValueError as error:
        raise ChainError(f"certificate: {error}") from error


def private_key(text: bytes) -> PrivateKeyTypes:
    """The key in PEM or DER, without a password.

    Raises:
        ChainError: there is none.
    """
    load = load_pem_private_key if text.lstrip().startswith(b"-----") else load_der_private_key
    try:
        return load(text, password=None)
    except (ValueError, TypeError) as error:
        raise ChainError(f"private key: {error}") from error


def assembled(
    identity: Identity,
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    key: PrivateKeyTypes,
) -> WorkloadCertificate:
    """A certificate of `identity`.

    Args:
        identity: whose it is to be; `first_identity` tells what its leaf says.
        chain: the leaf, then intermediates.
        roots: whom the identity trusts.
        key: the leaf's.

    Raises:
        ChainError: there is no leaf or no root, or the key is not the leaf's.
    """
    if not chain or not roots:
        raise ChainError("no certificate present" if roots else "no root certificate present")
    leaf = chain[0]
    if key.public_key() != leaf.public_key():
        raise ChainError("the private key is not that of the certificate")
    return WorkloadCertificate(
        identity=identity,
        chain_pem=_pem(chain),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        roots_pem=_pem(roots),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def first_identity(leaf: x509.Certificate) -> Identity | None:
    """The identity that is a certificate's first URI name; None if that is none, or is no identity.

    Source: ztunnel src/tls/certificate.rs.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return Identity.parse(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
    except (x509.ExtensionNotFound, IndexError, ValueError):
        return None


def _check_size(text: bytes) -> None:
    if len(text) > _MOST_BYTES:
        raise ChainError(f"{len(text)} bytes of certificates; the limit is {_MOST_BYTES}")


def _split(der: bytes) -> Iterator[bytes]:
    """The elements of DER that are one after the other; what is no DER comes out as it may."""
    while der:
        head = 2
        length = der[1] if len(der) > 1 else 0
        if length & 0x80:  # so many bytes of length follow
            head += length & 0x7F
            length = int.from_bytes(der[2:head])
        yield der[: head + length]
        der = der[head + length :]


def _pem(chain: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
