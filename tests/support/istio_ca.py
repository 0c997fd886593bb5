# SPDX-License-Identifier: Apache-2.0
"""istiod's certificate authority as a servicer of any `grpc.aio` server; strict, and scriptable.

Refuses what istiod refuses, with its words: no token or a wrong one, a token of another cluster, a
request that is not as ztunnel makes it, an identity asked for by somebody who may not.
"""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.authority import Leaf
from ztunnel_py.proto.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tests.support.authority import Authority

    Context = grpc.aio.ServicerContext[IstioCertificateRequest, IstioCertificateResponse]

SERVICE = "istio.v1.auth.IstioCertificateService"
TOKEN = "token-of-a-pod"
_NOT_AUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure"
_NOT_IMPERSONATED = grpc.StatusCode.UNAUTHENTICATED, "request impersonation authentication failure"
_BACKDATED = datetime.timedelta(minutes=2)
_LONGEST_TTL_S = 90 * 86400


class Asked(NamedTuple):
    """One request that came."""

    name: str
    """The URI that the CSR names."""
    public_key: bytes
    ttl_s: int
    impersonates: str | None
    headers: dict[str, str]


@dataclass
class IstioCa:
    """What it signs with, whom it trusts, and what a test wants it to do wrong."""

    authority: Authority
    tokens: Collection[str] | None = (TOKEN,)
    """None: nobody has to show one."""
    cluster_id: str = "Kubernetes"
    shared: bool | None = True
    """Requests come from a node's proxy, which asks for others; None: from either kind."""
    own_name: str = ""
    """Whom the token is of; granted if nobody is impersonated. Empty: as the CSR says."""
    unknown: Collection[str] = ()
    """Identities of which no pod runs on the node."""

    fails_with: tuple[grpc.StatusCode, str] | None = None
    chain: Callable[[str, list[str], str], list[str]] = lambda leaf, above, roots: [
        leaf,
        *above,
        roots,
    ]
    """Answer made of leaf, intermediates and roots."""
    name: Callable[[str], str] = lambda asked: asked
    """What the leaf is made out to."""
    lives_s: tuple[float, float] | None = None
    """Seconds from now that the leaf begins and ends; None: as asked for."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is clear nobody is answered; set at first."""

    asked: list[Asked] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves `CreateCertificate` there."""
        method = grpc.unary_unary_rpc_method_handler(
            self._create,
            IstioCertificateRequest.FromString,
            IstioCertificateResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"CreateCertificate": method})
        server.add_generic_rpc_handlers((handler,))

    async def _create(
        self, request: IstioCertificateRequest, context: Context
    ) -> IstioCertificateResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            asked = await self._checked(request, context)
            self.asked.append(asked)
            await self.gate.wait()
            if self.fails_with is not None:
                await context.abort(*self.fails_with)
            if asked.impersonates in self.unknown:
                await context.abort(*_NOT_IMPERSONATED)
            granted = asked.impersonates or self.own_name or asked.name
            return IstioCertificateResponse(cert_chain=self._signed(request, self.name(granted)))
        finally:
            self.in_flight -= 1

    async def _checked(self, request: IstioCertificateRequest, context: Context) -> Asked:
        headers = {key: str(value) for key, value in context.invocation_metadata() or ()}
        if self.tokens is not None:
            kind, _, token = headers.get("authorization", "").partition(" ")
            if kind != "Bearer" or token not in self.tokens:
                await context.abort(*_NOT_AUTHENTICATED)
            if headers.get("clusterid") != self.cluster_id:
                await context.abort(*_NOT_AUTHENTICATED)
        if request.validity_duration > _LONGEST_TTL_S:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "CSR signing error (requested TTL is too long)"
            )
        impersonates = None
        if request.HasField("metadata"):
            impersonates = str(request.metadata["ImpersonatedIdentity"])
        try:
            name, public_key = read_csr(request.csr)
            is_shared = impersonates is not None
            assert self.shared in (None, is_shared), "metadata is of shared mode only"
            assert impersonates in (None, name), f"{impersonates} asked for, CSR of {name}"
        except (AssertionError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a ztunnel: {error}")
        return Asked(name, public_key, request.validity_duration, impersonates, headers)

    def _signed(self, request: IstioCertificateRequest, name: str) -> list[str]:
        csr = x509.load_pem_x509_csr(request.csr.encode())
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        begins, ends = now - _BACKDATED, now + datetime.timedelta(seconds=request.validity_duration)
        if self.lives_s is not None:
            begins, ends = (now + datetime.timedelta(seconds=offset) for offset in self.lives_s)
        leaf = Leaf([x509.UniformResourceIdentifier(name)])
        signed = self.authority.certify(key, leaf, begins, ends).decode()
        above = [pem.decode() for pem in self.authority.intermediates]
        return self.chain(signed, above, self.authority.roots_pem.decode())


def read_csr(pem: str) -> tuple[str, bytes]:
    """The one name and the public key of a CSR as ztunnel makes them.

    Raises:
        AssertionError: it is made differently.
        ValueError: it is none.
    """
    csr = x509.load_pem_x509_csr(pem.encode())
    assert csr.is_signature_valid, "the signature is wrong"
    assert not list(csr.subject), "there is a subject"
    assert isinstance(csr.signature_hash_algorithm, hashes.SHA256), "not signed with SHA-256"
    key = csr.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "not an EC key"
    assert isinstance(key.curve, ec.SECP256R1), "not a P-256 key"
    assert len(csr.attributes) == 1, "more than one attribute"
    (extension,) = csr.extensions
    assert extension.critical, "the name is not critical"
    assert isinstance(extension.value, x509.SubjectAlternativeName), "an unknown extension"
    (name,) = extension.value
    assert isinstance(name, x509.UniformResourceIdentifier), "the name is no URI"
    return name.value, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
