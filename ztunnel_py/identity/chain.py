# SPDX-License-Identifier: Apache-2.0
"""Puts a certificate together from what an authority, a file or an agent hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from ztunnel_py.identity.certificates import WorkloadCertificate
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_BYTES = 1 << 20
"""Of all certificates together; a chain has a few thousand."""


class ChainError(Exception):
    """These are no certificates that can be used; the text says what is wrong with them."""


def certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates in a PEM text.

    Raises:
        ChainError: one cannot be read, or there is none.
    """
    if len(pem) > _MOST_BYTES:
        raise ChainError(f"{len(pem)} bytes of certificates; the limit is {_MOST_BYTES}")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ChainError(f"certificate: {error}") from error


def assembled(
    identity: Identity, chain: Sequence[x509.Certificate], roots: bytes, key_pem: bytes
) -> WorkloadCertificate:
    """A certificate of `identity`.

    Args:
        identity: whose it is to be; `first_identity` tells what its leaf says.
        chain: the leaf, then intermediates.
        roots: PEM, whom the identity trusts.
        key_pem: the leaf's key.

    Raises:
        ChainError: there is no leaf or no root, or the key is not the leaf's.
    """
    if not chain:
        raise ChainError("no certificate present")
    leaf = chain[0]
    trusted = certificates(roots)
    try:
        public = load_pem_private_key(key_pem, password=None).public_key()
    except (ValueError, TypeError) as error:
        raise ChainError(f"private key: {error}") from error
    if public != leaf.public_key():
        raise ChainError("the private key is not that of the certificate")
    return WorkloadCertificate(
        identity=identity,
        chain_pem=_pem(chain),
        key_pem=key_pem,
        roots_pem=_pem(trusted),
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


def _pem(chain: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
