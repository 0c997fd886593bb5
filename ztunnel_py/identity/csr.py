# SPDX-License-Identifier: Apache-2.0
"""A request for a certificate, with the fresh key that it is for.

Source: spec identity-ops, section A.2; ztunnel src/tls/csr.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

if TYPE_CHECKING:
    from ztunnel_py.identity.spiffe import Identity


class SigningRequest(NamedTuple):
    """A CSR and its key; neither is ever used twice."""

    pem: str
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def of(cls, identity: Identity) -> SigningRequest:
        """A request for `identity`: no subject, one critical URI name, a P-256 key.

        Raises:
            ValueError: the identity is not ASCII, so no certificate can name it.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        csr = (
            x509.CertificateSigningRequestBuilder(x509.Name([]))
            .add_extension(names, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(csr.public_bytes(Encoding.PEM).decode(), key)
