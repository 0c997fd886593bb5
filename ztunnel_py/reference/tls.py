# SPDX-License-Identifier: Apache-2.0
"""TLS without I/O: wire bytes on one side, plain bytes on the other.

Contexts are built once per certificate, not per connection. The library verifies the chain; whether
it is revoked and who the other side *is* gets checked here, after the handshake and before any
plain byte is looked at.

Some of spec identity-ops, A.6 to A.9, is native only, for want of a word in Python's ssl: suites of
TLS 1.3 cannot be chosen, so that ChaCha20 is offered too; a client whose ALPN has no h2 is let in;
the age of anchors counts, the length of chains does not; key exchange and signatures are the
library's; and whom only we refuse is not told why by an alert.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any, cast

from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Collection

    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.reference.revocation import Revocation

_READ_SIZE = 1 << 18
_DER = 2  # of the library's encodings
_TLS12_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
)


class IdentityMismatchError(Exception):
    """The certificate is valid and belongs to somebody else."""


class TlsContexts:
    """The two contexts of one workload certificate: as a server, as a client."""

    def __init__(self, certificate: WorkloadCertificate, *, tls12: bool) -> None:
        self.identity = certificate.identity
        self.server = _context(ssl.PROTOCOL_TLS_SERVER, certificate, tls12=tls12)
        self.server.num_tickets = 0  # every tunnel proves its identity anew
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, certificate, tls12=tls12)


def _context(
    protocol: ssl._SSLMethod, certificate: WorkloadCertificate, *, tls12: bool
) -> ssl.SSLContext:
    """A context that requires a certificate of our mesh and says nothing about host names."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
    context.set_ciphers(_TLS12_CIPHERS)
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_TICKET
    context.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
    # The library reads keys from files only; an anonymous memory file is never on a disk.
    fd = os.memfd_create("workload-key", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate.key_pem + certificate.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


class Tls:
    """One TLS connection."""

    def __init__(self, context: ssl.SSLContext, revocation: Revocation, *, is_client: bool) -> None:
        self._revocation = revocation
        self._is_client = is_client
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        # No server name: the name of a mesh workload is its SPIFFE identity.
        self._tls = context.wrap_bio(self._in, self._out, server_side=not is_client)
        self.is_established = False

    def receive(self, data: bytes | memoryview) -> bytes:
        """Takes wire bytes; returns the plain bytes they complete, b"" while shaking hands.

        Raises:
            ssl.SSLError: the other side broke the protocol or was not accepted; send what `take`
                returns (an alert) and close.
            EOFError: the other side closed the TLS connection in order.
        """
        self._in.write(data)
        if not self.is_established and not self.shake_hands():
            return b""
        found: list[bytes] = []
        while True:
            try:
                piece = self._tls.read(_READ_SIZE)
            except ssl.SSLWantReadError:
                return b"".join(found)
            except ssl.SSLZeroReturnError:
                piece = b""
            if not piece:
                if found:
                    return b"".join(found)
                raise EOFError("close_notify")
            found.append(piece)

    def shake_hands(self) -> bool:
        """Advances the handshake; True once it is complete. Raises like `receive`."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.is_established = True
        return True

    def send(self, data: bytes) -> None:
        """Encrypts plain bytes, for `take`."""
        self._tls.write(data)

    def close(self) -> None:
        """Says close_notify, for `take`."""
        try:
            self._tls.unwrap()
        except (ssl.SSLError, OSError):
            return  # it has been said; the answer is not waited for

    def take(self) -> bytes:
        """Bytes for the wire, all of them, once."""
        return self._out.read()

    def remote_identities(self) -> list[Identity]:
        """SPIFFE identities of the other side's certificate, in its order."""
        certificate = self._tls.getpeercert() or {}
        names = cast("tuple[tuple[str, str], ...]", certificate.get("subjectAltName", ()))
        found = []
        for kind, value in names:
            if kind == "URI":
                try:
                    found.append(Identity.parse(value))
                except ValueError:
                    continue  # another scheme, or another shape of SPIFFE id
        return found

    def check_revoked(self) -> None:
        """Whether the other side is revoked by now.

        Raises:
            RevokedError: it is not to be trusted.
        """
        inside: Any = self._tls
        chain = inside._sslobj.get_verified_chain() or ()  # in the open from Python 3.13 on
        self._revocation.check([one.public_bytes(_DER) for one in chain], is_client=self._is_client)

    def check_server(self, expected: Collection[Identity]) -> Identity:
        """The server's identity, one of `expected`. Source: spec identity-ops, A.9.

        Raises:
            IdentityMismatchError: none of its identities is expected.
            RevokedError: it is revoked.
        """
        self.check_revoked()
        got = self.remote_identities()
        for identity in got:
            if identity in expected:
                return identity
        wanted = ",".join(map(str, expected))
        shown = ",".join(map(str, got))
        raise IdentityMismatchError(
            "identity verification error: peer did not present the expected SAN "
            f"({wanted}), got {shown or 'none'}"
        )

    def check_client(self, ours: Identity | None) -> Identity:
        """The client's identity: its first, which must be of our trust domain (A.8).

        ztunnel accepts a trust domain found on any of several identities; here the identity that
        is used must be the one that matches.

        Raises:
            IdentityMismatchError: no SPIFFE identity, or one of another trust domain.
            RevokedError: it is revoked.
        """
        self.check_revoked()
        got = self.remote_identities()
        if not got:
            raise IdentityMismatchError("the client certificate has no SPIFFE identity")
        if ours is not None and got[0].trust_domain != ours.trust_domain:
            raise IdentityMismatchError(
                "identity verification error: peer did not present the expected trustdomain "
                f"({ours.trust_domain}), got {','.join(map(str, got))}"
            )
        return got[0]
