# SPDX-License-Identifier: Apache-2.0
"""Has the kernel hand over what a closing listener still holds, where it can be told to.

With `net.ipv4.tcp_migrate_req` (Linux 5.14) a connection that the kernel has begun or completed for
a listener goes to another one of the same port when the first closes, instead of being reset. It is
a setting of the pod's namespace, so it is as it was before once the listeners are gone. See
docs/decisions/0012-step-aside.md for what happens where it cannot be set.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py import netns
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from ztunnel_py.netns import Netns

SETTING = Path("/proc/sys/net/ipv4/tcp_migrate_req")

log = logger("ztunnel::inpod")


@contextlib.asynccontextmanager
async def handing_over(namespaces: Iterable[Netns]) -> AsyncIterator[None]:
    """Until the block ends, listeners that close in these namespaces hand over what they hold."""
    changed = await asyncio.to_thread(_switch_on, tuple(namespaces))
    try:
        yield
    finally:
        await asyncio.to_thread(_switch_off, changed)


def _switch_on(namespaces: Iterable[Netns]) -> list[Netns]:
    """Those in which it was off."""
    changed, failure = [], None
    for one in namespaces:
        try:
            with netns.inside(one):
                if SETTING.read_text().strip() == "0":
                    SETTING.write_text("1")
                    changed.append(one)
        except OSError as error:
            failure = failure or error  # said once: it may be the same everywhere
    if failure is not None:
        log.info(f"tcp_migrate_req cannot be set, so listeners only step aside: {failure}")
    return changed


def _switch_off(namespaces: Iterable[Netns]) -> None:
    for one in namespaces:
        with contextlib.suppress(OSError), netns.inside(one):
            SETTING.write_text("0")
