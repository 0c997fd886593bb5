# SPDX-License-Identifier: Apache-2.0
"""The engines that the conformance suite runs on, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.support.clock import FakeClock
    from ztunnel_py.dataplane.abc import DataPlane


def native(clock: FakeClock) -> DataPlane:
    """The C core, its timers moved by the clock that moves everything else."""
    from ztunnel_py.dataplane.native import NativeEngine

    engine = NativeEngine(clock, manual_time=True)
    clock.on_advance.append(engine.advance)
    return engine


def reference(clock: FakeClock) -> DataPlane:
    """The one on asyncio and h2."""
    from ztunnel_py.reference.engine import ReferenceEngine

    return ReferenceEngine(clock)


ENGINES: dict[str, Callable[[FakeClock], DataPlane]] = {"native": native, "reference": reference}
MANY_WORKERS = "native-3"
"""The native engine with three workers, for claims that hold whichever of them serves."""


def make_engine(name: str, clock: FakeClock) -> DataPlane:
    """An engine whose time a test moves."""
    return ENGINES[kind(name)](clock)


def kind(name: str) -> str:
    """The engine of a name that may also say how many workers it has."""
    return name.partition("-")[0]


def workers(name: str) -> int:
    """How many of them."""
    return int(name.partition("-")[2] or 1)


def forbid_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the reference engine's connections and tunnels impossible.

    Every connection, stream and tunnel that it serves is one of these objects. What is left is what
    SOCKS5 borrows: its listener and its negotiation.
    """
    from ztunnel_py.reference import conn, engine, relay, tunnel

    def served(self: object, *_: object, **__: object) -> NoReturn:
        raise AssertionError(f"the reference engine made a {type(self).__name__}")

    for kind_of in (conn.Conn, engine.ReferenceEngine, relay.Relay, tunnel.Tunnel):
        monkeypatch.setattr(kind_of, "__init__", served)
