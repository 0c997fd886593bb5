# SPDX-License-Identifier: Apache-2.0
"""The development CA: its root is shared safely, and its leaves are accepted by real TLS."""

from __future__ import annotations

import datetime
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ztunnel_py.errors import StartError
from ztunnel_py.identity import fake
from ztunnel_py.identity.certificates import views
from ztunnel_py.identity.fake import FakeCa, SigningRoot
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from ztunnel_py.identity.certificates import WorkloadCertificate

CART = Identity("cluster.local", "shop", "cart")
PRICES = Identity("cluster.local", "shop", "prices")
DAY = 86400.0


@pytest.fixture
def root(tmp_path: Path) -> SigningRoot:
    return fake.shared_root(tmp_path / "run")


def written(root: SigningRoot, directory: Path, key_format: str = "PKCS8") -> tuple[str, str]:
    """The root as the two files that an operator may give."""
    certificate, key = directory / "root.crt", directory / "root.key"
    certificate.write_bytes(root.roots_pem)
    form = getattr(serialization.PrivateFormat, key_format)
    encryption = serialization.NoEncryption()
    key.write_bytes(root.key.private_bytes(serialization.Encoding.PEM, form, encryption))
    return str(certificate), str(key)


def rsa_root() -> SigningRoot:
    """A root like that of ztunnel's own development CA."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "cluster.local")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return SigningRoot(certificate, key, certificate.public_bytes(serialization.Encoding.PEM))


def context(
    certificate: WorkloadCertificate, purpose: ssl._SSLMethod, directory: Path
) -> ssl.SSLContext:
    made = ssl.SSLContext(purpose)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=certificate.roots_pem.decode())
    path = directory / f"{certificate.identity.service_account}.pem"
    path.write_bytes(certificate.key_pem + certificate.chain_pem)
    made.load_cert_chain(path)
    return made


def shake_hands(
    client: WorkloadCertificate, server: WorkloadCertificate, directory: Path
) -> tuple[str, str]:
    """The URI names that server and client see of each other after a handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = context(client, ssl.PROTOCOL_TLS_CLIENT, directory).wrap_bio(down, up)
    b = context(server, ssl.PROTOCOL_TLS_SERVER, directory).wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (a, b):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    names = [(side.getpeercert() or {})["subjectAltName"] for side in (b, a)]
    return str(names[0][0][1]), str(names[1][0][1])


@pytest.mark.parametrize("kind", ["own", "rsa", "rsa-pkcs1"])
async def test_workloads_of_one_root_trust_each_other(kind: str, tmp_path: Path) -> None:
    made = rsa_root() if kind.startswith("rsa") else fake.shared_root(tmp_path / "run")
    form = "TraditionalOpenSSL" if kind == "rsa-pkcs1" else "PKCS8"
    files = written(made, tmp_path, form)
    one, two = FakeCa(made, DAY), FakeCa(fake.root(*files), DAY)

    seen = shake_hands(await one.issue(CART), await two.issue(PRICES), tmp_path)

    assert seen == (str(CART), str(PRICES))


async def test_workloads_of_different_roots_do_not(tmp_path: Path) -> None:
    one, two = (FakeCa(fake.shared_root(tmp_path / name), DAY) for name in ("a", "b"))

    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(await one.issue(CART), await two.issue(PRICES), tmp_path)


async def test_leaf_looks_like_one_of_istiod(root: SigningRoot) -> None:
    now = 1_800_000_000.0
    issued = await FakeCa(root, 3600, lambda: now).issue(CART)

    leaf = x509.load_pem_x509_certificate(issued.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(leaf.subject) == []
    assert names.critical
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [str(CART)]
    assert {x509.OID_SERVER_AUTH, x509.OID_CLIENT_AUTH} == set(usage)
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert (issued.not_before, issued.not_after) == (now - 120, now + 3600)
    assert issued.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    leaf.verify_directly_issued_by(root.certificate)


async def test_leaf_never_outlives_the_root(root: SigningRoot) -> None:
    issued = await FakeCa(root, DAY * 365 * 20).issue(CART)

    assert issued.not_after == root.certificate.not_valid_after_utc.timestamp()


async def test_every_leaf_has_a_key_of_its_own(root: SigningRoot) -> None:
    ca = FakeCa(root, DAY)

    assert (await ca.issue(CART)).key_pem != (await ca.issue(CART)).key_pem


async def test_certificates_are_shown_as_dumps_want_them(root: SigningRoot) -> None:
    issued = await FakeCa(root, 3600, lambda: 1_800_000_000.0).issue(CART)

    (view,) = views(issued.chain_pem)
    assert (view.valid_from, view.expiration_time) == (
        "2027-01-15T07:58:00Z",
        "2027-01-15T09:00:00Z",
    )
    assert view.serial_number.isdigit()
    assert len(views(issued.roots_pem)) == 1
    assert views(b"") == []


# --- the shared root


def test_root_is_made_once_and_only_for_us(tmp_path: Path) -> None:
    directory = tmp_path / "run"

    first, second = fake.shared_root(directory), fake.shared_root(directory)

    assert first.roots_pem == second.roots_pem
    (path,) = directory.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_processes_that_start_together_share_one_root(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from ztunnel_py.identity import fake;"
        "print(fake.shared_root(pathlib.Path(sys.argv[1])).certificate.serial_number)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]

    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]

    serials = {process.communicate(timeout=30)[0] for process in started}
    assert len(serials) == 1
    assert serials != {b""}


def test_expired_root_is_replaced(tmp_path: Path) -> None:
    old = fake.shared_root(tmp_path / "run", lambda: time.time() - DAY * 4000)

    new = fake.shared_root(tmp_path / "run")

    assert new.certificate.serial_number != old.certificate.serial_number
    assert new.certificate.not_valid_after_utc.timestamp() > time.time()


def test_directory_of_others_is_refused(tmp_path: Path) -> None:
    open_to_all, link = tmp_path / "open", tmp_path / "link"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    (tmp_path / "real").mkdir(mode=0o700)
    link.symlink_to(tmp_path / "real")

    for directory in (open_to_all, link, tmp_path / "absent" / "run"):
        with pytest.raises(StartError, match=str(directory)):
            fake.shared_root(directory)


def test_root_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    fake.shared_root(tmp_path / "run")
    (path,) = (tmp_path / "run").iterdir()
    path.chmod(0o644)

    with pytest.raises(StartError, match="mode 0600"):
        fake.shared_root(tmp_path / "run")


def test_damaged_root_file_is_refused(tmp_path: Path) -> None:
    fake.shared_root(tmp_path / "run")
    (path,) = (tmp_path / "run").iterdir()
    path.write_bytes(b"")

    with pytest.raises(StartError, match=f"no certificate in {path}"):
        fake.shared_root(tmp_path / "run")


def test_runtime_directory_is_the_users(tmp_path: Path) -> None:
    assert fake.runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "ztunnel-py"
    assert str(os.geteuid()) in str(fake.runtime_directory({}))


def test_runtime_directory_is_in_tmp_where_nobody_may_look_for_the_logins(tmp_path: Path) -> None:
    unreadable = tmp_path / ("x" * 300)  # as ProtectHome= makes it, an error but not absent

    assert fake.runtime_directory({}, unreadable) == Path(f"/tmp/ztunnel-py-{os.geteuid()}")


# --- the root as files


def test_one_file_without_the_other_is_refused() -> None:
    with pytest.raises(StartError, match="FAKE_CA_ROOT_CERT is set but FAKE_CA_ROOT_KEY is not"):
        fake.root("root.crt", "")
    with pytest.raises(StartError, match="FAKE_CA_ROOT_KEY is set but FAKE_CA_ROOT_CERT is not"):
        fake.root("", "root.key")


def test_no_files_mean_the_shared_root(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}

    made = fake.root(environ=environ)

    assert made.roots_pem == fake.shared_root(tmp_path / "ztunnel-py").roots_pem


@pytest.mark.parametrize(
    ("which", "content", "error"),
    [
        (0, None, "FAKE_CA_ROOT_CERT: cannot read"),
        (1, None, "FAKE_CA_ROOT_KEY: cannot read"),
        (0, b"x", "FAKE_CA_ROOT_CERT: no certificate in"),
        (1, b"x", "FAKE_CA_ROOT_KEY: no usable private key in"),
    ],
)
def test_bad_root_files_are_named(
    which: int, content: bytes | None, error: str, root: SigningRoot, tmp_path: Path
) -> None:
    files = [tmp_path / "root.crt", tmp_path / "root.key"]
    paths = written(root, tmp_path)
    if content is None:
        files[which].unlink()
    else:
        files[which].write_bytes(content)

    with pytest.raises(StartError, match=error):
        fake.root(*paths)


async def test_certificate_that_may_not_sign_is_refused(root: SigningRoot, tmp_path: Path) -> None:
    leaf = await FakeCa(root, DAY).issue(CART)
    certificate, key = tmp_path / "leaf.crt", tmp_path / "leaf.key"
    certificate.write_bytes(leaf.chain_pem)
    key.write_bytes(leaf.key_pem)
    expired = fake.shared_root(tmp_path / "old", lambda: time.time() - DAY * 4000)

    with pytest.raises(StartError, match=r"FAKE_CA_ROOT_CERT: .* is no CA, or has expired"):
        fake.root(str(certificate), str(key))
    with pytest.raises(StartError, match=r"FAKE_CA_ROOT_CERT: .* is no CA, or has expired"):
        fake.root(*written(expired, tmp_path))


def test_key_of_another_certificate_is_refused(root: SigningRoot, tmp_path: Path) -> None:
    certificate, key = written(root, tmp_path)
    other = fake.shared_root(tmp_path / "other")
    (tmp_path / "root.crt").write_bytes(other.roots_pem)

    with pytest.raises(StartError, match=r"FAKE_CA_ROOT_KEY: .* is not the key of"):
        fake.root(certificate, key)
