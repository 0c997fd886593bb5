# SPDX-License-Identifier: Apache-2.0
"""Asks and answers: the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from ztunnel_py.clock import Clock
    from ztunnel_py.dataplane.abc import DataPlane


def open_engine(name: str, clock: Clock) -> DataPlane:
    """The engine that `ZTUNNEL_DATAPLANE` asks for; never another one.

    Raises:
        ConfigError: this build has no such engine.
    """
    if name == "reference":
        from ztunnel_py.reference.engine import ReferenceEngine

        return ReferenceEngine(clock)
    if name == "native":
        try:
            from ztunnel_py.dataplane.native import NativeEngine
        except ImportError as error:
            raise ConfigError(
                f"ZTUNNEL_DATAPLANE=native: the C core cannot be loaded: {error}; build it with "
                "`make setup`, or set ZTUNNEL_DATAPLANE=reference"
            ) from error
        return NativeEngine(clock)
    raise ConfigError(f"ZTUNNEL_DATAPLANE={name}: this version has no such engine")
