# SPDX-License-Identifier: Apache-2.0
"""Ends verdicts whose state has changed: the engine's epochs move with the store's.

A store tells its listeners within `apply`, in the order in which they subscribed, so `follow` is
called before anybody else subscribes who decides. No decision can then come between a change and
the engine's knowing of it, and a verdict is stamped with the epoch that it was decided in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.state.store import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.dataplane.abc import DataPlane
    from ztunnel_py.state.store import Store


def follow(store: Store, plane: DataPlane) -> Callable[[], None]:
    """Bumps the engine's epochs with every change from now on; returns the undo."""

    def bump(change: Change) -> None:
        plane.epoch_bump(discovery=Change.DISCOVERY in change, policy=Change.POLICY in change)

    return store.subscribe(bump)
