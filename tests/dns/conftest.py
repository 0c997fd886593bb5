# SPDX-License-Identifier: Apache-2.0
"""DNS servers of one client, ended with the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.dns.asking import CLIENT, begin
from ztunnel_py.state.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.dns.asking import Asking
    from ztunnel_py.state.store import Update

    Asks = Callable[..., Awaitable[Asking]]


@pytest.fixture
async def asks() -> AsyncIterator[Asks]:
    """Starts a server whose mesh has these updates, and the client unless `client=False`."""
    made: list[Asking] = []

    async def start(*updates: Update, client: bool = True, **options: Any) -> Asking:
        store = Store()
        store.apply([CLIENT, *updates] if client else updates)
        made.append(await begin(store, **options))
        return made[-1]

    yield start
    for one in made:
        await one.close()
