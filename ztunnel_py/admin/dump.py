# SPDX-License-Identifier: Apache-2.0
"""The object of `/config_dump`: state, certificates, configuration and version.

Source: spec identity-ops, section D.3; ztunnel src/admin.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ztunnel_py.admin.dump_config import dump_config
from ztunnel_py.admin.dump_state import dump_local, dump_state
from ztunnel_py.admin.json_text import Each
from ztunnel_py.identity.certificates import views
from ztunnel_py.identity.manager import CertificateState
from ztunnel_py.version import BuildInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.config_model import Config
    from ztunnel_py.identity.manager import CertificateStatus
    from ztunnel_py.state.store import Store, Update

Json = dict[str, Any]


def config_dump(
    config: Config,
    store: Store,
    certificates: Iterable[CertificateStatus],
    local_state: Iterable[Update] = (),
    pods: Json | None = None,
) -> Json:
    """Everything known; what there is much of is made while it is written, see `json_text`.

    Args:
        config: the settings.
        store: the mesh.
        certificates: how identities stand.
        local_state: what LOCAL_XDS says now, for `staticConfig`.
        pods: `dump_pods` in shared mode, else None.
    """
    shared = {} if pods is None else {"workloadState": pods}
    return (
        dump_state(store)
        | shared
        | {
            "certificates": Each(_dump_status, _by_identity(certificates)),
            "config": dump_config(config),
            "staticConfig": dump_local(local_state),
            "version": BuildInfo.running(config.istio_version).dump(),
        }
    )


def dump_certificates(statuses: Iterable[CertificateStatus]) -> list[Json]:
    """One entry per identity, ordered by its text."""
    return list(map(_dump_status, _by_identity(statuses)))


def _by_identity(statuses: Iterable[CertificateStatus]) -> list[CertificateStatus]:
    return sorted(statuses, key=lambda status: str(status.identity))


def _dump_status(status: CertificateStatus) -> Json:
    state, shown = status.state.value, status.certificate
    if status.state is CertificateState.UNAVAILABLE:
        state = f"{state}: {status.error}"
    if status.state is not CertificateState.AVAILABLE:
        shown = None
    return {
        "identity": str(status.identity),
        "state": state,
        "certChain": _dump_pem(shown.chain_pem) if shown else [],
        "rootCerts": _dump_pem(shown.roots_pem) if shown else [],
    }


def _dump_pem(pem: bytes) -> list[Json]:
    return [
        {
            "pem": view.pem,
            "serialNumber": view.serial_number,
            "validFrom": view.valid_from,
            "expirationTime": view.expiration_time,
        }
        for view in views(pem)
    ]
