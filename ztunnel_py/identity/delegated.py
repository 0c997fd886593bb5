# SPDX-License-Identifier: Apache-2.0
"""Certificates from SPIRE's Delegated Identity API: those of any workload of the node.

The agent must list this proxy's own identity among its `authorized_delegates`. A workload is named
by its namespace and service account, as the agent's Kubernetes attestor would see it.
Source: SPIRE, spire/api/agent/delegatedidentity/v1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.chain import ChainError, assembled, der_certificates, private_key
from ztunnel_py.identity.subscription import Subscription
from ztunnel_py.proto.spire_delegated_pb2 import (
    Selector,
    SubscribeToX509BundlesRequest,
    SubscribeToX509BundlesResponse,
    SubscribeToX509SVIDsRequest,
    SubscribeToX509SVIDsResponse,
)
from ztunnel_py.rpc.address import UnixAddress
from ztunnel_py.rpc.channel import Channel

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.clock import Clock
    from ztunnel_py.identity.ca import Renew
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.proto.spire_delegated_pb2 import X509SVIDWithKey
    from ztunnel_py.tasks import Tasks

_SERVICE = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity"
_SVIDS, _BUNDLES = f"{_SERVICE}/SubscribeToX509SVIDs", f"{_SERVICE}/SubscribeToX509Bundles"


class Delegated:
    """The certificates that an agent has for the workloads of its node."""

    def __init__(self, socket: Path, clock: Clock, tasks: Tasks) -> None:
        self._clock = clock
        self._tasks = tasks
        self._channel = Channel(UnixAddress(str(socket)), None, lambda: ())
        request = SubscribeToX509BundlesRequest().SerializeToString()
        self._bundles = Subscription(self._channel, _BUNDLES, request, clock, self._bundles_changed)
        self._svids: dict[Identity, Subscription] = {}
        self._renew: Renew | None = None

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """The agent's newest certificate of `identity`, with the roots of its trust domain.

        Raises:
            IdentityError: it has none, or cannot be reached, or does not trust us.
        """
        stream = self._svids.get(identity) or self._subscribed(identity)
        message, bundles = await stream.newest(), await self._bundles.newest()
        try:
            svids = SubscribeToX509SVIDsResponse.FromString(message).x509_svids
            roots = SubscribeToX509BundlesResponse.FromString(bundles).ca_certificates
            for svid in svids:
                if _name(svid) == str(identity):
                    return assembled(
                        identity,
                        der_certificates(b"".join(svid.x509_svid.cert_chain)),
                        der_certificates(roots.get(f"spiffe://{identity.trust_domain}", b"")),
                        private_key(svid.x509_svid_key),
                    )
        except (ChainError, DecodeError) as error:
            raise IdentityError(f"agent at {self._channel}: {error}") from error
        given = ", ".join(map(_name, svids)) or "none"
        raise IdentityError(
            f"the agent at {self._channel} gives no certificate for {identity}, but: {given}"
        )

    def start(self, renew: Renew) -> None:
        """Subscribes to the roots; to certificates, when they are first asked for."""
        self._renew = renew
        self._tasks.spawn(self._bundles.run())

    def stop(self) -> None:
        """Hangs up."""
        self._channel.close()

    def _subscribed(self, identity: Identity) -> Subscription:
        selectors = [
            Selector(type="k8s", value=f"ns:{identity.namespace}"),
            Selector(type="k8s", value=f"sa:{identity.service_account}"),
        ]
        request = SubscribeToX509SVIDsRequest(selectors=selectors).SerializeToString()

        def changed() -> bool:
            assert self._renew is not None
            is_needed = self._renew(identity)
            if not is_needed:
                del self._svids[identity]
            return is_needed

        stream = Subscription(self._channel, _SVIDS, request, self._clock, changed)
        self._svids[identity] = stream
        self._tasks.spawn(stream.run())
        return stream

    def _bundles_changed(self) -> bool:
        assert self._renew is not None
        for identity in self._svids:
            self._renew(identity)
        return True


def _name(svid: X509SVIDWithKey) -> str:
    return f"spiffe://{svid.x509_svid.id.trust_domain}{svid.x509_svid.id.path}"
