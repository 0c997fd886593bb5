# SPDX-License-Identifier: Apache-2.0
"""What only the native engine can do, with real sockets: the fixtures of the conformance suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conformance.conftest import client, engine_name, mesh, net, planes, server

if TYPE_CHECKING:
    import pytest

__all__ = ["client", "engine_name", "mesh", "net", "planes", "server"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test on the native engine."""
    if "engine_name" in metafunc.fixturenames:
        metafunc.parametrize("engine_name", ["native"], indirect=True)
