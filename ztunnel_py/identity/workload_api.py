# SPDX-License-Identifier: Apache-2.0
"""Certificates from the SPIFFE Workload API: those of the process that asks, as attested.

So it serves a dedicated proxy, which is its workload's; not a proxy of many workloads.
Source: SPIFFE Workload API, sections 4 to 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.chain import ChainError, assembled, der_certificates, private_key
from ztunnel_py.identity.subscription import Subscription
from ztunnel_py.proto.spiffe_workload_pb2 import X509SVIDRequest, X509SVIDResponse
from ztunnel_py.rpc.address import UnixAddress
from ztunnel_py.rpc.channel import Channel

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.clock import Clock
    from ztunnel_py.identity.ca import Renew
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.tasks import Tasks

_PATH = "/SpiffeWorkloadAPI/FetchX509SVID"
_HEADERS = (("workload.spiffe.io", "true"),)
"""What tells the agent that a workload asks, and no web page that was led to its socket."""


class WorkloadApi:
    """The certificates that an agent has for us."""

    def __init__(self, socket: Path, clock: Clock, tasks: Tasks) -> None:
        self._tasks = tasks
        self._channel = Channel(UnixAddress(str(socket)), None, lambda: _HEADERS)
        request = X509SVIDRequest().SerializeToString()
        self._stream = Subscription(self._channel, _PATH, request, clock, self._changed)
        self._asked: set[Identity] = set()
        self._renew: Renew | None = None

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """The agent's newest certificate of `identity`.

        Raises:
            IdentityError: it has none, or cannot be reached.
        """
        self._asked.add(identity)
        try:
            svids = X509SVIDResponse.FromString(await self._stream.newest()).svids
            for svid in svids:
                if svid.spiffe_id == str(identity):
                    return assembled(
                        identity,
                        der_certificates(svid.x509_svid),
                        der_certificates(svid.bundle),
                        private_key(svid.x509_svid_key),
                    )
        except (ChainError, DecodeError) as error:
            raise IdentityError(f"agent at {self._channel}: {error}") from error
        given = ", ".join(svid.spiffe_id for svid in svids) or "none"
        raise IdentityError(
            f"the agent at {self._channel} gives no certificate for {identity}, but: {given}"
        )

    def start(self, renew: Renew) -> None:
        """Subscribes."""
        self._renew = renew
        self._tasks.spawn(self._stream.run())

    def stop(self) -> None:
        """Hangs up."""
        self._channel.close()

    def _changed(self) -> bool:
        assert self._renew is not None
        for identity in self._asked:
            self._renew(identity)
        return True
