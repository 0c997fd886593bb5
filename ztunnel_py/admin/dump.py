# SPDX-License-Identifier: Apache-2.0
"""The object of `/config_dump`: state, certificates, configuration and version.

Source: spec identity-ops, section D.3; ztunnel src/admin.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ztunnel_py.admin.dump_config import dump_config
from ztunnel_py.admin.dump_state import dump_state
from ztunnel_py.identity.certificates import views
from ztunnel_py.identity.manager import CertificateState
from ztunnel_py.state.store import Store
from ztunnel_py.version import BuildInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ztunnel_py.config_model import Config
    from ztunnel_py.identity.manager import CertificateStatus
    from ztunnel_py.state.store import Update

Json = dict[str, Any]


def config_dump(
    config: Config,
    store: Store,
    certificates: Iterable[CertificateStatus],
    local_state: Iterable[Update] = (),
    pods: Json | None = None,
) -> Json:
    """Everything known.

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
            "certificates": dump_certificates(certificates),
            "config": dump_config(config),
            "staticConfig": dump_static(local_state),
            "version": BuildInfo.running(config.istio_version).dump(),
        }
    )


def dump_certificates(statuses: Iterable[CertificateStatus]) -> list[Json]:
    """One entry per identity, ordered by its text."""
    return sorted(map(_dump_status, statuses), key=lambda entry: str(entry["identity"]))


def dump_static(local_state: Iterable[Update]) -> Json:
    """The local state in the shape of the whole."""
    store = Store()
    store.apply(local_state)
    known = dump_state(store)
    return {key: known[key] for key in ("workloads", "policies", "services")}


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
