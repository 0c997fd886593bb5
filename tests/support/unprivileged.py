# SPDX-License-Identifier: Apache-2.0
"""A process without privileges that binds a workload's listeners.

    python -m tests.support.unprivileged ENGINE true|unset

Prints the name of the error, or whether the listeners are transparent.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import sys

from tests.support.clock import FakeClock
from tests.support.engines import make_engine
from tests.support.plane import LOOPBACK, WORKLOAD
from ztunnel_py.dataplane.abc import EngineSettings, ListenAddress, Role, WorkloadSpec

_CAPABILITY_VERSION_3 = 0x20080522


def drop_privileges() -> None:
    """Gives up every capability, also that of root in a user namespace (capset(2))."""
    header = struct.pack("=II", _CAPABILITY_VERSION_3, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


async def bind(engine_name: str, *, orig_src: bool | None) -> str:
    """What comes of binding the listeners."""
    engine = make_engine(engine_name, FakeClock())
    engine.start(EngineSettings(orig_src=orig_src))
    listeners = tuple(ListenAddress(role, LOOPBACK, 0) for role in Role)
    try:
        engine.workload_add(WorkloadSpec(WORKLOAD, listeners))
    except OSError as error:
        return type(error).__name__
    is_any = any(engine.is_transparent(WORKLOAD, role) for role in Role)
    await engine.stop()
    return "transparent" if is_any else "not transparent"


if __name__ == "__main__":
    drop_privileges()
    print(asyncio.run(bind(sys.argv[1], orig_src=True if sys.argv[2] == "true" else None)))
