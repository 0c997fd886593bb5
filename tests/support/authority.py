# SPDX-License-Identifier: Apache-2.0
"""An authority whose certificates are what a test wants: expired, wrongly used, strangely named."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel_py.identity.certificates import WorkloadCertificate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ztunnel_py.identity.spiffe import Identity

    Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_HOUR = datetime.timedelta(hours=1)
_DAY = datetime.timedelta(days=1)

SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
BOTH = (SERVER_AUTH, CLIENT_AUTH)


@dataclass(frozen=True)
class Leaf:
    """What a leaf says of itself; the defaults are those of a workload."""

    names: Sequence[x509.GeneralName] = ()
    usages: Sequence[x509.ObjectIdentifier] | None = BOTH
    is_expired: bool = False
    is_early: bool = False
    """Not valid before tomorrow."""
    ends_in: datetime.timedelta | None = None
    is_ca: bool = False
    signs: bool = True
    """Its key usage allows digital signatures."""
    more: x509.ExtensionType | None = None
    """One further extension, critical."""


def uris(*names: str) -> Leaf:
    """A leaf with these URIs as its names."""
    return Leaf([x509.UniformResourceIdentifier(name) for name in names])


class Authority:
    """A root, or an intermediate below one."""

    def __init__(self, name: str = "root", *, is_expired: bool = False) -> None:
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key: Key = ec.generate_private_key(ec.SECP256R1())
        builder = self._authority(self._subject, self._key, self._subject, is_expired)
        self.pem = _pem(builder.sign(self._key, hashes.SHA256()))
        self.roots_pem = self.pem
        self.intermediates: list[bytes] = []
        """PEM of what lies between a leaf and the root."""

    def intermediate(
        self,
        name: str,
        usages: Sequence[x509.ObjectIdentifier] | None = None,
        *,
        is_expired: bool = False,
    ) -> Authority:
        """An authority certified by this one, for certain usages only if they are given."""
        below = Authority(name)
        builder = self._authority(below._subject, below._key, self._subject, is_expired)
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        below.pem = _pem(builder.sign(self._key, hashes.SHA256()))
        below.roots_pem = self.roots_pem
        below.intermediates = [below.pem, *self.intermediates]
        return below

    def issue(self, identity: Identity, leaf: Leaf | None = None) -> WorkloadCertificate:
        """A certificate that belongs to `identity`, whatever the leaf says."""
        leaf = leaf or uris(str(identity))
        return self.sign(identity, leaf, ec.generate_private_key(ec.SECP256R1()))

    def issue_rsa(self, identity: Identity, bits: int) -> WorkloadCertificate:
        """A certificate of an RSA key."""
        key = rsa.generate_private_key(65537, bits)
        return self.sign(identity, uris(str(identity)), key)

    def crl(
        self,
        *revoked: WorkloadCertificate | Authority,
        is_expired: bool = False,
        signer: Authority | None = None,
        more: Iterable[int] = (),
        extension: x509.ExtensionType | None = None,
        is_weak: bool = False,
    ) -> bytes:
        """A revocation list, DER.

        Args:
            revoked: whose first certificate it lists.
            is_expired: its next update was due an hour ago.
            signer: whose key it is signed with, if not this one's.
            more: further serial numbers.
            extension: a critical one.
            is_weak: its signature is.
        """
        now = _now()
        ends = now - _HOUR if is_expired else now + _DAY
        serials = [*(serial(one) for one in revoked), *more]
        entries = [x509.RevokedCertificateBuilder(one, now - _HOUR).build() for one in serials]
        builder = x509.CertificateRevocationListBuilder(
            self._subject, now - _DAY, ends, revoked_certificates=entries
        )
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        digest = hashes.SHA224() if is_weak else hashes.SHA256()
        signed = builder.sign((signer or self)._key, digest)
        return signed.public_bytes(Encoding.DER)

    def sign(self, identity: Identity, leaf: Leaf, key: Key) -> WorkloadCertificate:
        """A certificate of a key, with the chain up to the root, which is left out."""
        now = _now()
        begins = now + _DAY if leaf.is_early else now - _DAY
        ends = now - _HOUR if leaf.is_expired else now + (leaf.ends_in or 2 * _DAY)
        return WorkloadCertificate(
            identity=identity,
            chain_pem=self.certify(key.public_key(), leaf, begins, ends)
            + b"".join(self.intermediates),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            roots_pem=self.roots_pem,
            not_before=begins.timestamp(),
            not_after=ends.timestamp(),
        )

    def certify(
        self, key: PublicKey, leaf: Leaf, begins: datetime.datetime, ends: datetime.datetime
    ) -> bytes:
        """A leaf for a public key, in PEM."""
        builder = self._builder(x509.Name([]), self._subject, key, begins, ends)
        builder = builder.add_extension(x509.BasicConstraints(leaf.is_ca, None), critical=True)
        builder = builder.add_extension(_key_usage(signs=leaf.signs), critical=True)
        if leaf.usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(leaf.usages), critical=False)
        if leaf.names:
            builder = builder.add_extension(x509.SubjectAlternativeName(leaf.names), critical=True)
        if leaf.more is not None:
            builder = builder.add_extension(leaf.more, critical=True)
        return _pem(builder.sign(self._key, hashes.SHA256()))

    def _authority(
        self, subject: x509.Name, key: Key, issuer: x509.Name, is_expired: bool
    ) -> x509.CertificateBuilder:
        now = _now()
        ends = now - _HOUR if is_expired else now + _DAY
        builder = self._builder(subject, issuer, key.public_key(), now - 2 * _DAY, ends)
        return builder.add_extension(x509.BasicConstraints(True, None), critical=True)

    @staticmethod
    def _builder(
        subject: x509.Name,
        issuer: x509.Name,
        key: PublicKey,
        begins: datetime.datetime,
        ends: datetime.datetime,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer_name=issuer, subject_name=subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
        )


def forged(certificate: WorkloadCertificate) -> WorkloadCertificate:
    """The same with a broken signature of its leaf."""
    leaf = x509.load_pem_x509_certificates(certificate.chain_pem)[0]
    der = bytearray(leaf.public_bytes(Encoding.DER))
    der[-1] ^= 1
    broken = x509.load_der_x509_certificate(bytes(der))
    return replace(certificate, chain_pem=_pem(broken))


def serial(of: WorkloadCertificate | Authority) -> int:
    """The serial number of a certificate."""
    pem = of.pem if isinstance(of, Authority) else of.chain_pem
    return x509.load_pem_x509_certificates(pem)[0].serial_number


def crl_pem(*lists: bytes) -> bytes:
    """Revocation lists as one PEM text."""
    return b"".join(x509.load_der_x509_crl(one).public_bytes(Encoding.PEM) for one in lists)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
