# SPDX-License-Identifier: Apache-2.0
"""A certificate authority for development: signs whatever is asked, with a shared root.

Proxies trust each other if they share the root: given as files, or made once per user and kept in
a directory that only the user can read. Leaves look like those of istiod: empty subject, one
critical URI name, a P-256 key of their own, valid since two minutes ago.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel_py.errors import StartError
from ztunnel_py.identity.certificates import WorkloadCertificate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ztunnel_py.identity.ca import Renew
    from ztunnel_py.identity.spiffe import Identity

_BACKDATED = datetime.timedelta(minutes=2)
_ROOT_LIFE = datetime.timedelta(days=3650)
_ROOT_FILE = "fake-ca-root.pem"


@dataclass(frozen=True, slots=True)
class SigningRoot:
    """A root certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    roots_pem: bytes


class FakeCa:
    """Issues certificates from a root that it holds."""

    def __init__(
        self, root: SigningRoot, ttl_s: float, now: Callable[[], float] = time.time
    ) -> None:
        """A CA whose certificates live for `ttl_s`, but never longer than the root."""
        self._root = root
        self._ttl = datetime.timedelta(seconds=ttl_s)
        self._now = now

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """A certificate for `identity`, whoever asks."""
        root = self._root.certificate
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.fromtimestamp(int(self._now()), datetime.UTC)
        not_after = min(now + self._ttl, root.not_valid_after_utc)
        leaf = (
            x509.CertificateBuilder(issuer_name=root.subject, subject_name=x509.Name([]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]),
                critical=True,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._root.key.public_key()),
                critical=False,
            )
            .sign(self._root.key, hashes.SHA256())
        )
        return WorkloadCertificate(
            identity=identity,
            chain_pem=_pem(leaf),
            key_pem=_key_pem(key),
            roots_pem=self._root.roots_pem,
            not_before=(now - _BACKDATED).timestamp(),
            not_after=not_after.timestamp(),
        )

    def start(self, renew: Renew) -> None:
        """Nothing changes by itself."""

    def stop(self) -> None:
        """There is nothing to end."""


def root(
    certificate_path: str = "",
    key_path: str = "",
    environ: Mapping[str, str] = os.environ,
    now: Callable[[], float] = time.time,
) -> SigningRoot:
    """The root of the two files, or if neither is given the user's own, made if there is none.

    Raises:
        StartError: only one is given, or the root cannot be read, trusted or made.
    """
    if certificate_path and key_path:
        return given_root(certificate_path, key_path, now)
    if certificate_path or key_path:
        present, absent = "FAKE_CA_ROOT_CERT", "FAKE_CA_ROOT_KEY"
        if key_path:
            present, absent = absent, present
        raise StartError(f"{present} is set but {absent} is not; set both or neither")
    return shared_root(runtime_directory(environ), now)


def given_root(
    certificate_path: str, key_path: str, now: Callable[[], float] = time.time
) -> SigningRoot:
    """The root of two PEM files; the certificate file may hold further roots to trust.

    Raises:
        StartError: naming the variable of the file that is at fault.
    """
    certificate_pem = _read("FAKE_CA_ROOT_CERT", certificate_path)
    key_pem = _read("FAKE_CA_ROOT_KEY", key_path)
    try:
        certificates = x509.load_pem_x509_certificates(certificate_pem)
    except ValueError as error:
        raise StartError(f"FAKE_CA_ROOT_CERT: no certificate in {certificate_path}") from error
    certificate = certificates[0]
    if not _may_sign(certificate, now):
        raise StartError(f"FAKE_CA_ROOT_CERT: {certificate_path} is no CA, or has expired")
    key = _signing_key("FAKE_CA_ROOT_KEY", key_path, key_pem)
    if key.public_key() != certificate.public_key():
        raise StartError(
            f"FAKE_CA_ROOT_KEY: {key_path} is not the key of the certificate {certificate_path}"
        )
    return SigningRoot(certificate, key, b"".join(map(_pem, certificates)))


def _may_sign(certificate: x509.Certificate, now: Callable[[], float]) -> bool:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return extension.value.ca and now() < certificate.not_valid_after_utc.timestamp()


def runtime_directory(environ: Mapping[str, str], logins: Path = Path("/run/user")) -> Path:
    """Where this user's short-lived files belong."""
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "ztunnel-py"
    user = os.geteuid()
    login = logins / str(user)
    with contextlib.suppress(OSError):  # it is not there, or a service may not look
        if login.stat().st_uid == user:
            return login / "ztunnel-py"
    # Anybody may create names here, so `_opened` insists on a directory of our own.
    return Path(f"/tmp/ztunnel-py-{user}")  # noqa: S108


def shared_root(directory: Path, now: Callable[[], float] = time.time) -> SigningRoot:
    """The root kept in `directory`: one for all processes, even if they start together.

    Raises:
        StartError: the directory or the file is not safely ours.
    """
    descriptor = _opened(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = directory / _ROOT_FILE
        found = _stored_root(path, descriptor)
        moment = datetime.datetime.fromtimestamp(now(), datetime.UTC)
        if found is None or found.certificate.not_valid_after_utc <= moment:
            found = _new_root(moment)
            _store(found, path, descriptor)
        return found
    except OSError as error:
        raise StartError(f"fake CA: cannot keep a root in {directory}: {error}") from error
    finally:
        os.close(descriptor)


def _opened(directory: Path) -> int:
    """A descriptor of `directory`, made if absent, that only we can enter."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise StartError(f"fake CA: cannot use the directory {directory}: {error}") from error
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(descriptor)
        raise StartError(f"fake CA: {directory} must be ours alone (mode 0700); remove it")
    return descriptor


def _stored_root(path: Path, directory: int) -> SigningRoot | None:
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW
        descriptor = os.open(path.name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise StartError(f"fake CA: {path} must be ours alone (mode 0600); remove it")
        pem = file.read()
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise StartError(f"fake CA: no certificate in {path}; remove it") from error
    key = _signing_key("fake CA", str(path), pem)
    return SigningRoot(certificate, key, _pem(certificate))


def _store(made: SigningRoot, path: Path, directory: int) -> None:
    """Replace the file in one step, so that nobody ever reads half of it."""
    temporary = f".{path.name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as file:
        file.write(made.roots_pem + _key_pem(made.key))
    os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)


def _new_root(now: datetime.datetime) -> SigningRoot:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local")])
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return SigningRoot(certificate, key, _pem(certificate))


def _read(variable: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StartError(f"{variable}: cannot read {path}: {error}") from error


def _signing_key(
    name: str, path: str, pem: bytes
) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise StartError(f"{name}: no usable private key in {path}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise StartError(f"{name}: the key in {path} is neither EC nor RSA")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_encipherment=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
