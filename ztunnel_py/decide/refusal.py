# SPDX-License-Identifier: Apache-2.0
"""How the steps of a decision say no."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide.verdict import Action, Epoch, Verdict

if TYPE_CHECKING:
    from ztunnel_py.errors import Reason
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload, WorkloadInfo


class Refused(Exception):
    """There is no way to go on; becomes an early denial."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def denial(store: Store, local: Workload | WorkloadInfo, refused: Refused) -> Verdict:
    """The verdict that `refused` ends in."""
    return Verdict(
        Action.DENY,
        refused.reason,
        refused.detail,
        workload=f"{local.namespace}/{local.name}",
        epoch=epoch(store),
    )


def epoch(store: Store) -> Epoch:
    """What a decision made now is based on."""
    return Epoch(store.discovery_epoch, store.policy_epoch)
