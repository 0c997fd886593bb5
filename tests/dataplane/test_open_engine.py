# SPDX-License-Identifier: Apache-2.0
"""The engine that is asked for is the engine that runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ztunnel_py.clock import LoopClock
from ztunnel_py.dataplane import open_engine
from ztunnel_py.errors import ConfigError


@pytest.mark.parametrize("name", ["native", "reference"])
def test_engine_is_the_one_that_was_asked_for(name: str) -> None:
    assert open_engine(name, LoopClock()).__impl__ == name


def test_core_that_is_not_built_is_named_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ztunnel_py.dataplane.native", raising=False)
    monkeypatch.setitem(sys.modules, "ztunnel_py.core._core", None)
    monkeypatch.delattr("ztunnel_py.core._core", raising=False)

    with pytest.raises(ConfigError) as caught:
        open_engine("native", LoopClock())

    assert "ztunnel_py.core" in str(caught.value)
    assert "make setup" in str(caught.value)


def test_a_proxy_with_the_core_does_not_load_the_reference_engine() -> None:
    program = (
        "import sys, ztunnel_py.app, ztunnel_py.dataplane.native\n"
        "print([n for n in sys.modules if n.startswith('ztunnel_py.reference')])"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="ZTUNNEL_DATAPLANE=fast"):
        open_engine("fast", LoopClock())
