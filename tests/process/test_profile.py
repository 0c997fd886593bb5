# SPDX-License-Identifier: Apache-2.0
"""Profiles of a running proxy."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import APPS, ROOT, redirected
from ztunnel_py.proto.profile_pb2 import Profile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns
PATH = "/debug/pprof/profile"


def test_threads_of_the_native_engine_are_in_a_profile(
    launch: Callable[..., Proxy], pod: Pod, tmp_path: Path
) -> None:
    proxy = launch(ZTUNNEL_DATAPLANE="native")

    with redirected(pod, 9, 15001):
        churn = [sys.executable, str(APPS), "churn", "127.0.0.1", "9", "100000"]
        busy = subprocess.Popen(
            pod.command(churn), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        proxy.get(15000, f"{PATH}?seconds=1", "--output", str(tmp_path / "profile"))
        busy.kill()
        busy.wait()

    profile = Profile.FromString(gzip.decompress((tmp_path / "profile").read_bytes()))
    names = {profile.string_table[one.name] for one in profile.function}
    assert {name[:-1] for name in names if name.startswith("[native]")} >= {"[native] worker-"}
    assert "MainThread" in profile.string_table


def test_a_profile_that_is_being_taken_does_not_hold_up_an_exit(
    launch: Callable[..., Proxy],
) -> None:
    proxy = launch()

    with ThreadPoolExecutor() as pool:

        def ask() -> str:
            return proxy.get(15000, f"{PATH}?seconds=300").stderr

        asked = pool.submit(ask)

        def is_busy() -> bool:
            nonlocal asked
            if asked.done():  # it came second
                asked = pool.submit(ask)
            wanted = "--output", "/dev/null", "--write-out", "%{http_code}"
            return proxy.get(15000, f"{PATH}?seconds=1", *wanted).stdout == "409"

        proxy.wait(is_busy, "a profile")
        proxy.signal(signal.SIGTERM)

        assert proxy.exit_status(4) == 0
