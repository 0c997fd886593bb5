# SPDX-License-Identifier: Apache-2.0
"""A SPIRE agent as servicers of any `grpc.aio` server: Workload API and Delegated Identity API."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ztunnel_py.proto.spiffe_workload_pb2 import X509SVID, X509SVIDRequest, X509SVIDResponse
from ztunnel_py.proto.spire_delegated_pb2 import SPIFFEID, X509SVIDWithKey
from ztunnel_py.proto.spire_delegated_pb2 import X509SVID as DelegatedSvid
from ztunnel_py.proto.spire_delegated_pb2 import (
    SubscribeToX509BundlesRequest as BundlesRequest,
)
from ztunnel_py.proto.spire_delegated_pb2 import (
    SubscribeToX509BundlesResponse as BundlesResponse,
)
from ztunnel_py.proto.spire_delegated_pb2 import SubscribeToX509SVIDsRequest as SvidsRequest
from ztunnel_py.proto.spire_delegated_pb2 import SubscribeToX509SVIDsResponse as SvidsResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.rpc import RpcServer
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity

    Context = grpc.aio.ServicerContext

_DELEGATED = "spire.api.agent.delegatedidentity.v1.DelegatedIdentity"


class Agent:
    """What it has, and who asked. A change is pushed to all streams."""

    def __init__(self) -> None:
        self.certificates: list[WorkloadCertificate] = []
        self.bundles: dict[str, bytes] = {}
        """DER by trust domain."""
        self.asked: list[list[str]] = []
        """Selectors of each subscription to certificates."""
        self.refuses: tuple[grpc.StatusCode, str] | None = None
        self.is_confused = False
        """It gives everything to everybody."""
        self.open_streams = 0
        self._changed = asyncio.Event()
        self._bundles_changed = asyncio.Event()

    def change(
        self, *certificates: WorkloadCertificate, bundles: dict[str, bytes] | None = None
    ) -> None:
        """From now on the agent has these."""
        self.certificates = list(certificates)
        self.bundles = bundles or {
            one.identity.trust_domain: der(one.roots_pem) for one in certificates
        }
        before, self._changed = self._changed, asyncio.Event()
        before.set()
        self.change_bundles(self.bundles)

    def change_bundles(self, bundles: dict[str, bytes]) -> None:
        """From now on the agent trusts these; streams of certificates are told nothing."""
        self.bundles = bundles
        before, self._bundles_changed = self._bundles_changed, asyncio.Event()
        before.set()

    def add_to(self, server: RpcServer) -> None:
        """Serves both APIs."""
        server.add(
            "SpiffeWorkloadAPI",
            FetchX509SVID=grpc.unary_stream_rpc_method_handler(
                self._fetch, X509SVIDRequest.FromString, X509SVIDResponse.SerializeToString
            ),
        )
        server.add(
            _DELEGATED,
            SubscribeToX509SVIDs=grpc.unary_stream_rpc_method_handler(
                self._svids,
                SvidsRequest.FromString,
                SvidsResponse.SerializeToString,
            ),
            SubscribeToX509Bundles=grpc.unary_stream_rpc_method_handler(
                self._trusted,
                BundlesRequest.FromString,
                BundlesResponse.SerializeToString,
            ),
        )

    async def _fetch(
        self, _: X509SVIDRequest, context: Context[X509SVIDRequest, X509SVIDResponse]
    ) -> AsyncIterator[X509SVIDResponse]:
        if ("workload.spiffe.io", "true") not in (context.invocation_metadata() or ()):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        if self.refuses is not None:
            await context.abort(*self.refuses)
        with self._streaming():
            while True:
                changed = self._changed
                yield X509SVIDResponse(svids=map(self._svid, self.certificates))
                await changed.wait()

    def _svid(self, one: WorkloadCertificate) -> X509SVID:
        return X509SVID(
            spiffe_id=str(one.identity),
            x509_svid=der(one.chain_pem),
            x509_svid_key=key_der(one),
            bundle=self.bundles[one.identity.trust_domain],
        )

    async def _svids(
        self, request: SvidsRequest, context: Context[SvidsRequest, SvidsResponse]
    ) -> AsyncIterator[SvidsResponse]:
        selectors = sorted(f"{one.type}:{one.value}" for one in request.selectors)
        self.asked.append(selectors)
        if self.refuses is not None:
            await context.abort(*self.refuses)
        with self._streaming():
            while True:
                changed = self._changed
                fitting = [
                    one
                    for one in self.certificates
                    if self.is_confused or selectors_of(one.identity) == selectors
                ]
                yield SvidsResponse(x509_svids=map(delegated_svid, fitting))
                await changed.wait()

    async def _trusted(
        self, _: BundlesRequest, __: Context[BundlesRequest, BundlesResponse]
    ) -> AsyncIterator[BundlesResponse]:
        with self._streaming():
            while True:
                changed = self._bundles_changed
                named = {f"spiffe://{name}": text for name, text in self.bundles.items()}
                yield BundlesResponse(ca_certificates=named)
                await changed.wait()

    @contextlib.contextmanager
    def _streaming(self) -> Iterator[None]:
        self.open_streams += 1
        try:
            yield
        finally:
            self.open_streams -= 1


def delegated_svid(one: WorkloadCertificate) -> X509SVIDWithKey:
    """A certificate as the Delegated Identity API has it."""
    path = f"/{one.identity.principal.partition('/')[2]}"
    svid = DelegatedSvid(
        cert_chain=[
            certificate.public_bytes(Encoding.DER) for certificate in parsed(one.chain_pem)
        ],
        id=SPIFFEID(trust_domain=one.identity.trust_domain, path=path),
    )
    return X509SVIDWithKey(x509_svid=svid, x509_svid_key=key_der(one))


def selectors_of(identity: Identity) -> list[str]:
    """How the agent's Kubernetes attestor sees a workload."""
    return [f"k8s:ns:{identity.namespace}", f"k8s:sa:{identity.service_account}"]


def parsed(pem: bytes) -> list[x509.Certificate]:
    """Certificates of a PEM text."""
    return x509.load_pem_x509_certificates(pem) if pem else []


def der(pem: bytes) -> bytes:
    """The same one after the other in DER."""
    return b"".join(one.public_bytes(Encoding.DER) for one in parsed(pem))


def key_der(certificate: WorkloadCertificate) -> bytes:
    """Its key, PKCS#8."""
    key = load_pem_private_key(certificate.key_pem, None)
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
