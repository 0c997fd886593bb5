# SPDX-License-Identifier: Apache-2.0
"""The engines that the conformance suite runs on, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.reference.engine import ReferenceEngine

if TYPE_CHECKING:
    from tests.support.clock import FakeClock
    from ztunnel_py.dataplane.abc import DataPlane

ENGINES = {"reference": ReferenceEngine}


def make_engine(name: str, clock: FakeClock) -> DataPlane:
    """An engine whose time a test moves."""
    return ENGINES[name](clock)
