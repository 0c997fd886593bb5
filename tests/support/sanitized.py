# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin behind `make san`: the core that tests load is the one built in `build/asan`.

The sanitizers' libraries have to be in the process before anything else, so whoever starts pytest
preloads them. Programs that tests start must not inherit that: they are not ours.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import ztunnel_py.core

if TYPE_CHECKING:
    import pytest

BUILT = Path(__file__).parents[2] / "build" / "asan" / "ztunnel_py" / "core"

ztunnel_py.core.__path__.insert(0, str(BUILT))


def pytest_configure(config: pytest.Config) -> None:
    """Forgets the preloading in the process that runs tests."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        os.environ.pop("LD_PRELOAD", None)


def pytest_report_header() -> str:
    """Says which core is tested."""
    from ztunnel_py.core import _core

    return f"core: {_core.__file__}"
