# SPDX-License-Identifier: Apache-2.0
"""Every test here runs on every engine, with a program that is not ours at the other end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.conftest import (
    client,
    engine_name,
    net,
    planes,
    pytest_generate_tests,
    server,
)
from tests.foreign.programs import Programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["client", "engine_name", "net", "planes", "programs", "pytest_generate_tests", "server"]


@pytest.fixture
async def programs() -> AsyncIterator[Programs]:
    """Starts programs; they end with the test."""
    programs = Programs()
    yield programs
    await programs.stop()
