# SPDX-License-Identifier: Apache-2.0
"""Where this process's certificates come from, as the settings choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ztunnel_py.config_model import IdentitySource, ProxyMode
from ztunnel_py.identity import fake
from ztunnel_py.identity.ca import CertificateAuthority
from ztunnel_py.identity.delegated import Delegated
from ztunnel_py.identity.files import Files
from ztunnel_py.identity.istiod import Istiod
from ztunnel_py.identity.workload_api import WorkloadApi
from ztunnel_py.rpc.server import Server
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from ztunnel_py.clock import Clock
    from ztunnel_py.config_model import Config
    from ztunnel_py.identity.ca import Renew
    from ztunnel_py.tasks import Tasks

log = logger("ztunnel::identity")


class Source(CertificateAuthority, Protocol):
    """An authority that may know by itself when there is something new."""

    def start(self, renew: Renew) -> None:
        """From now on `renew` is called for whoever may have a new certificate."""

    def stop(self) -> None:
        """Watches and keeps nothing open any more."""


def chosen(config: Config, clock: Clock, tasks: Tasks) -> Source:
    """The source that the settings name.

    Raises:
        StartError: it cannot be used.
    """
    match config.identity_source:
        case IdentitySource.FAKE:
            log.warn("FAKE_CA=true: certificates come from a development CA that signs for anyone")
            cert, key = config.fake_ca_root_cert, config.fake_ca_root_key
            return fake.FakeCa(fake.root(str(cert or ""), str(key or "")), config.secret_ttl_s)
        case IdentitySource.FILES:
            assert config.identity_files is not None
            return Files(config.identity_files, clock)
        case IdentitySource.SPIFFE:
            assert config.spiffe_socket is not None
            return WorkloadApi(config.spiffe_socket, clock, tasks)
        case IdentitySource.SPIRE:
            return Delegated(config.spire_socket, clock, tasks)
        case IdentitySource.ISTIOD:
            return Istiod(
                Server.authority(config),
                ttl_s=config.secret_ttl_s,
                impersonates=config.mode is ProxyMode.SHARED,
            )
