# SPDX-License-Identifier: Apache-2.0
"""The authority of the mesh: istiod, or whatever speaks its `CreateCertificate`.

Source: spec identity-ops, section A.3; ztunnel src/identity/caclient.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.chain import ChainError, assembled, certificates, first_identity
from ztunnel_py.identity.csr import SigningRequest
from ztunnel_py.proto.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ztunnel_py.rpc.errors import RootsError, RpcError
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.identity.ca import Renew
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.rpc.channel import Channel
    from ztunnel_py.rpc.server import Server
    from ztunnel_py.stamp import Stamp

_PATH = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_ANSWER_S = 30.0
"""ztunnel waits for ever; then a server that never answers keeps all later identities waiting."""
_DEFAULT_TTL_S = 86400
_INT64_MAX = 2**63 - 1

log = logger("ztunnel::identity::caclient")


class Istiod:
    """Asks the mesh's authority to sign."""

    def __init__(
        self, server: Server, *, ttl_s: float, impersonates: bool, answer_s: float = _ANSWER_S
    ) -> None:
        """An authority that has not been called yet.

        Args:
            server: where it is and what it is told with each call.
            ttl_s: lifetime to ask for.
            impersonates: we ask on behalf of others, as in shared mode, and check the answer.
            answer_s: how long an answer may take.
        """
        self._server = server
        self._ttl_s = int(ttl_s) if ttl_s <= _INT64_MAX else _DEFAULT_TTL_S
        self._impersonates = impersonates
        self._answer_s = answer_s
        self._channel: Channel | None = None
        self._stamp: Stamp | None = None
        """What the file of roots was like when the channel was made."""

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """A certificate with a fresh key.

        Raises:
            IdentityError: refused, unreachable, or the answer is unusable; the text is ztunnel's.
        """
        try:
            request = SigningRequest.of(identity)
            answer = IstioCertificateResponse.FromString(
                await self._current_channel().unary(
                    _PATH, self._message(identity, request).SerializeToString(), self._answer_s
                )
            )
            return self._certificate(identity, answer.cert_chain, request)
        except RpcError as error:
            text = f"signing gRPC error ({error.description}): {error.message}"
            raise IdentityError(text) from error
        except (ChainError, RootsError, ValueError, DecodeError) as error:
            raise IdentityError(f"failed to create CSR: {error}") from error

    def start(self, renew: Renew) -> None:
        """Nothing changes by itself: istiod has to be asked."""

    def stop(self) -> None:
        """Hangs up."""
        if self._channel is not None:
            self._channel.close()

    def _message(self, identity: Identity, request: SigningRequest) -> IstioCertificateRequest:
        message = IstioCertificateRequest(csr=request.pem, validity_duration=self._ttl_s)
        if self._impersonates:
            message.metadata["ImpersonatedIdentity"] = str(identity)
        return message

    def _certificate(
        self, identity: Identity, answer: Sequence[str], request: SigningRequest
    ) -> WorkloadCertificate:
        """What the answer amounts to: its first text is the leaf, its last holds the roots."""
        if not answer:
            raise IdentityError(f"chain returned from CA is empty for: {identity}")
        if len(answer) == 1:
            raise ChainError("invalid root certificate: no root certificate present")
        chain = [certificates(pem.encode())[0] for pem in answer[:-1]]
        made = assembled(identity, chain, certificates(answer[-1].encode()), request.key)
        if self._impersonates and first_identity(chain[0]) != identity:
            raise IdentityError(f"did not find expected SAN: {identity}")
        return made

    def _current_channel(self) -> Channel:
        """A channel with the roots as they are now; the former one if those cannot be used.

        A file is looked at before each call. That needs no watcher, and what was read half-written
        is read again, since it has changed again.

        Raises:
            RootsError: there never was a usable root.
        """
        stamp = self._server.roots.stamp()
        if self._channel is not None and stamp == self._stamp:
            return self._channel
        try:
            made = self._server.channel()
        except RootsError as error:
            if self._channel is None:
                raise
            log.warn(
                "cannot use the new roots; going on with the old ones", {"error": Display(error)}
            )
        else:
            if self._channel is not None:
                self._channel.retire()
            self._channel = made
        self._stamp = stamp
        return self._channel
