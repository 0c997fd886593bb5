# SPDX-License-Identifier: Apache-2.0
"""An explanation: why a connection ends as it does, step by step, and what would change that.

Nothing is decided here. The verdicts are those of `journey`, which asks the real decisions; the
steps look at the same facts with the same primitives and say what was found. Decisions know
nothing of it, so an explanation costs nothing until somebody asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztunnel_py.decide import explain_inbound, explain_outbound, names
from ztunnel_py.decide.journey import travel
from ztunnel_py.decide.remedy import remedy
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from ztunnel_py.decide.change import Change
    from ztunnel_py.decide.journey import Journey, Outcome
    from ztunnel_py.decide.settings import Settings
    from ztunnel_py.decide.step import Step
    from ztunnel_py.state.store import Store

_NO_REMEDY = "no change of the mesh was found that would help"
_NO_REMEDY_FOR = {
    Reason.SELF_CALL: "nothing to change: the proxy's own ports are never reached through it",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one connection ends as it does."""

    source: str
    destination: str
    journey: Journey
    steps: tuple[Step, ...]
    changes: tuple[Change, ...] | None
    """What would let it be encrypted and allowed, none if it is; None if nothing was found."""

    @property
    def outcome(self) -> Outcome:
        """How it ends, at worst."""
        return self.journey.outcome

    @property
    def reason(self) -> str:
        """As logged; empty if the connection is let through."""
        return self.journey.decisive.reason

    @property
    def obstacle(self) -> Step | None:
        """The first step that stands in the way."""
        return next((step for step in self.steps if step.is_obstacle), None)

    @property
    def fix(self) -> str:
        """The changes in a line; empty if none are needed."""
        if self.changes is not None:
            return "; ".join(one.words for one in self.changes)
        verdict = self.journey.decisive.verdict or self.journey.outbound
        reason = verdict.reason if verdict is not None else Reason.OK
        return _NO_REMEDY_FOR.get(reason, _NO_REMEDY)

    def tree(self) -> dict[str, object]:
        """As plain values, for JSON."""
        changes = self.changes
        return {
            "source": self.source,
            "destination": self.destination,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "steps": [step.tree(number) for number, step in enumerate(self.steps, 1)],
            "fix": self.fix,
            "changes": None if changes is None else [one.tree() for one in changes],
        }


def explain(store: Store, settings: Settings, src: str, dst: str) -> Explanation:
    """Why a connection from `src` to `dst` ends as it does.

    Args:
        store: the mesh; it is copied, not changed.
        settings: those of a node; each node's network is taken to be that of its workloads.
        src: `namespace/name`, a name, a uid or an address.
        dst: `ip[:port]`, `hostname[:port]`, or `namespace/name[:port]`.

    Raises:
        UnknownNameError: one of them is nobody's name.
    """
    journey = travel(store, settings, src, dst)
    route = journey.route
    steps = (
        *explain_outbound.steps(store, settings, journey),
        *explain_inbound.steps(store, journey),
    )
    source = names.shown(route.source) if route.is_known else src
    asked = f"{dst} ({route.dst})" if route.named is not None else str(route.dst)
    return Explanation(source, asked, journey, steps, remedy(store, settings, src, dst, journey))
