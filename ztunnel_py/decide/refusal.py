# SPDX-License-Identifier: Apache-2.0
"""How the steps of a decision say no."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.decide.verdict import DENIAL_TTL_S, Action, Verdict
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from ztunnel_py.decide.key import Uses
    from ztunnel_py.state.workload import Workload, WorkloadInfo


class Refused(Exception):
    """There is no way to go on; becomes an early denial."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def denial(local: Workload | WorkloadInfo, refused: Refused, uses: Uses) -> Verdict:
    """The verdict that `refused` ends in.

    A local workload that is not known yet is about to be: that refusal serves no one else.
    """
    return Verdict(
        Action.DENY,
        refused.reason,
        refused.detail,
        workload=f"{local.namespace}/{local.name}",
        uses_source=uses.source,
        uses_host=uses.host,
        uses_claims=uses.claims,
        ttl_s=0.0 if refused.reason is Reason.UNKNOWN_WORKLOAD else DENIAL_TTL_S,
    )
