# SPDX-License-Identifier: Apache-2.0
"""The mesh of a saved dump, as far as decisions need it.

Entries of a dump are those of a local state file, apart from keys of other versions, and from
memberships, which a dump shows as endpoints of services.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ztunnel_py.cli.failure import Failure
from ztunnel_py.cli.source import at, entries, text
from ztunnel_py.decide.settings import Settings
from ztunnel_py.errors import LocalStateError
from ztunnel_py.state.store import Store
from ztunnel_py.xds.local import POLICY_KEYS, SERVICE_KEYS, WORKLOAD_KEYS, read

if TYPE_CHECKING:
    from collections.abc import Collection

Json = dict[str, Any]

_NEEDED = ("workloads", "services", "policies")
_GATEWAYS = ("waypoint", "networkGateway")


def mesh(dump: Json, name: str) -> tuple[Store, Settings]:
    """The state in a dump, and the settings that it shows; `name` names it in errors.

    Raises:
        Failure: it does not carry enough.
    """
    missing = [key for key in _NEEDED if not isinstance(dump.get(key), list | dict)]
    if missing:
        raise Failure(f"{name} does not carry enough: it has no {', '.join(missing)}")
    tree = {
        "workloads": [_workload(one) for one in entries(dump, "workloads")],
        "services": [_service(one) for one in entries(dump, "services")],
        "policies": [_policy(one) for one in entries(dump, "policies")],
    }
    store = Store(text(dump, "config", "localNode"))
    try:
        store.apply(read(tree, name).updates)
    except LocalStateError as error:
        raise Failure(f"{error}; is it the dump of another version?") from error
    return store, Settings(network=text(dump, "config", "network"))


def _workload(one: Json) -> Json:
    known = _known(one, WORKLOAD_KEYS) | {"services": {}}
    return known | {key: _gateway(one[key]) for key in _GATEWAYS if at(one, key) is not None}


def _service(one: Json) -> Json:
    known = _known(one, SERVICE_KEYS)
    if at(one, "waypoint") is not None:
        known["waypoint"] = _gateway(one["waypoint"])
    endpoints = at(one, "endpoints")
    if isinstance(endpoints, dict):
        known["endpoints"] = {
            uid: _known(endpoint, ("workloadUid", "port", "status"))
            for uid, endpoint in endpoints.items()
        }
    return known


def _policy(one: Json) -> Json:
    return {"dryRun": False} | _known(one, POLICY_KEYS)


def _gateway(one: object) -> Json:
    """Old versions say `port`."""
    port = at(one, "hboneMtlsPort") or at(one, "port")
    return {"destination": at(one, "destination"), "hboneMtlsPort": port}


def _known(one: object, keys: Collection[str]) -> Json:
    return {key: value for key in keys if (value := at(one, key)) is not None}
