# SPDX-License-Identifier: Apache-2.0
"""Brings a plan into a pod's network namespace, looks whether it is there, takes it away.

Order: routes, policy rules, then the rules that send packets there. Each table changes at once, so
that at no moment a packet passes uncaptured that was captured before, and nothing has to be
stopped meanwhile. What other programs have put into the built-in chains stays; chains that begin
with ISTIO and tables istio-ambient-* are ours, with all that is in them.

All functions block, for some 30 ms, and work in a thread of their own: where there is an event
loop, call them with `asyncio.to_thread`. `where` is the pod's namespace; None: the caller's.
Source: spec redirection, sections 2 and 3.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from ztunnel_py.redirection import choice, routes
from ztunnel_py.redirection.programs import RedirectionError, call_inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.netns import Netns
    from ztunnel_py.redirection.choice import Backend
    from ztunnel_py.redirection.difference import Difference
    from ztunnel_py.redirection.plan import Family, Plan


def apply(plan: Plan, backend: Backend, where: Netns | None = None) -> None:
    """Makes the namespace equal to the plan; a second time, nothing changes.

    Rules of ours that were made by other programs go away once the new ones are there.

    Raises:
        RedirectionError: something failed, and what had been done was undone; or only those other
            rules could not be removed.
    """
    call_inside(where, functools.partial(_apply, plan, backend))


def verify(plan: Plan, backend: Backend, where: Netns | None = None) -> list[Difference]:
    """What `apply` would change; empty if the plan is there and nothing else of ours.

    Raises:
        RedirectionError: the rules cannot be read.
    """
    return call_inside(where, functools.partial(_verify, plan, backend))


def reconcile(plan: Plan, backend: Backend, where: Netns | None = None) -> list[Difference]:
    """Applies the plan if it is not there; returns what was wrong.

    Raises:
        RedirectionError: as `apply`.
    """

    def repair() -> list[Difference]:
        found = _verify(plan, backend)
        if found:
            _apply(plan, backend)
        return found

    return call_inside(where, repair)


def remove(families: Sequence[Family], where: Netns | None = None) -> None:
    """Takes away all that is ours, by whatever programs it was made; a clean pod is success.

    Captured connections end with it.

    Raises:
        RedirectionError: something could not be removed; everything else was.
    """
    call_inside(where, functools.partial(_remove, families))


def _apply(plan: Plan, backend: Backend) -> None:
    added = routes.add(plan.families)
    try:
        backend.fill(plan)
    except RedirectionError:
        routes.remove(added)
        raise
    for other in _others(plan, backend):
        other.clear(plan.families)


def _verify(plan: Plan, backend: Backend) -> list[Difference]:
    nothing = dataclasses.replace(plan, jumps=(), rules=())
    return [
        *routes.missing(plan.families),
        *backend.differences(plan),
        *(one for other in _others(plan, backend) for one in other.differences(nothing)),
    ]


def _others(plan: Plan, backend: Backend) -> list[Backend]:
    return [one for one in choice.backends() if one != backend and one.holds(plan.families)]


def _remove(families: Sequence[Family]) -> None:
    steps = [functools.partial(backend.clear, families) for backend in choice.backends()]
    steps.append(functools.partial(routes.remove, routes.pieces(families)))
    failures = []
    for step in steps:
        try:
            step()
        except RedirectionError as error:
            failures.append(str(error))
    if failures:
        raise RedirectionError("; ".join(failures))
