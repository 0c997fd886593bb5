# SPDX-License-Identifier: Apache-2.0
"""Real TLS on a TCP connection of a test, in the open: nothing is sent or read behind its back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from typing import TYPE_CHECKING

from tests.support.wait import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.identity.certificates import WorkloadCertificate

_CHUNK = 1 << 16


def tls_context(
    certificate: WorkloadCertificate | None,
    *,
    is_server: bool,
    alpn: Sequence[str] = ("h2",),
    trusts_all: bool = False,
) -> ssl.SSLContext:
    """A TLS side of the mesh; without a certificate, one that presents none and trusts all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if trusts_all:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # and presents anything
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if certificate is not None:
        if not trusts_all:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=certificate.roots_pem.decode())
        fd = os.memfd_create("certificate")
        os.write(fd, certificate.key_pem + certificate.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
        os.close(fd)
    return context


def first_record(context: ssl.SSLContext) -> bytes:
    """What a client says first: its ClientHello."""
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    return said.read()


class TlsStream:
    """TLS over a reader and a writer."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        self._reader = reader
        self.writer = writer
        self.in_crumbs = False
        """Plain bytes leave in a TLS record each, wire bytes in a segment each."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        is_server = context.protocol is ssl.PROTOCOL_TLS_SERVER
        self._tls = context.wrap_bio(self._in, self._out, server_side=is_server)

    async def shake_hands(self) -> None:
        """Completes the handshake.

        Raises:
            OSError: one side did not accept the other (ssl.SSLError), or hung up.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not self._advance():
                    if not (data := await self._reader.read(_CHUNK)):
                        raise ConnectionResetError("hung up in the handshake")
                    self._in.write(data)
        except BaseException:
            self.writer.transport.close()
            raise

    def write(self, data: bytes) -> None:
        """Encrypts and sends."""
        for start in range(0, len(data), 1 if self.in_crumbs else max(len(data), 1)):
            self._tls.write(data[start : start + 1] if self.in_crumbs else data)
        self._flush()

    async def read(self) -> bytes:
        """Plain bytes; nothing once the other side has ended.

        Raises:
            OSError: the connection broke, or an alert came.
        """
        while True:
            try:
                return self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLZeroReturnError:
                return b""
            if not (data := await self._reader.read(_CHUNK)):
                return b""
            self._in.write(data)

    @property
    def version_and_suite(self) -> tuple[str | None, str | None]:
        """What was agreed on."""
        cipher = self._tls.cipher()
        return self._tls.version(), None if cipher is None else cipher[0]

    @property
    def names(self) -> list[str]:
        """Names in the other side's certificate."""
        certificate = self._tls.getpeercert() or {}
        names = certificate.get("subjectAltName", ())
        return [str(name[1]) for name in names if isinstance(name, tuple)]

    def _advance(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._flush()
        return True

    def _flush(self) -> None:
        data = self._out.read()
        if self.in_crumbs:
            for start in range(len(data)):
                self.writer.write(data[start : start + 1])
        elif data:
            self.writer.write(data)
