# SPDX-License-Identifier: Apache-2.0
"""Engines on loopback, as the conformance suite has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conformance.conftest import client, engine_name, net, planes, server
from tests.support.engines import ENGINES

if TYPE_CHECKING:
    import pytest

__all__ = ["client", "engine_name", "net", "planes", "server"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test on every engine, or on those that its module names in `RUNS_ON`."""
    if "engine_name" in metafunc.fixturenames:
        engines = getattr(metafunc.module, "RUNS_ON", list(ENGINES))
        metafunc.parametrize("engine_name", engines, indirect=True)
