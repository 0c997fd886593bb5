# SPDX-License-Identifier: Apache-2.0
"""The demo as a whole: it succeeds, fails when a piece is missing, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.cli.topology import REPOSITORY, Realm

if TYPE_CHECKING:
    from pathlib import Path

DEMO = [sys.executable, "-m", "ztunnel_py", "demo"]
pytestmark = pytest.mark.usefixtures("namespaces")


def demonstrate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the demo to its end, with its files in a folder of the test."""
    return subprocess.run(
        [*DEMO, *options],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def namespaces_of(pid: int) -> list[str]:
    """The namespaces that a run has on this machine."""
    realm = Realm()
    names = realm.run(["ip", "netns", "list"]).stdout.split()
    realm.close()
    return [name for name in names if name.startswith(f"zt{pid}-")]


def test_demo_shows_every_step_and_leaves_nothing(tmp_path: Path) -> None:
    done = demonstrate(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n  ok  ") == 7
    assert "captured on 15001" in done.stdout
    assert "server proved spiffe://cluster.local/ns/demo/sa/server" in done.stdout
    assert "policy: allowed by demo/web-callers" in done.stdout
    assert "refused: connection closed due to policy rejection" in done.stdout
    assert "Mbit/s" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_runs_without_local_files_on_what_a_control_plane_says(tmp_path: Path) -> None:
    done = demonstrate(tmp_path, "--istiod")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n  ok  ") == 7
    assert "nothing but TLS on port 15008 and 15012" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_the_policy_the_demo_fails_at_the_intruder(tmp_path: Path) -> None:
    done = demonstrate(tmp_path, "--break", "policy")

    assert done.returncode == 1
    assert "FAILED  it was served: 200" in done.stdout
    assert "demo failed" in done.stderr
    assert "Another service account" in done.stderr


def test_with_plaintext_forced_the_demo_fails_at_the_wire(tmp_path: Path) -> None:
    done = demonstrate(tmp_path, "--break", "plaintext")

    assert done.returncode == 1
    assert "not the HBONE port" in done.stdout
    assert "the request's secret is readable" in done.stdout
    assert "The wire between the nodes" in done.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_demo_stays_until_told_and_cleans_up(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    report = tmp_path / "report"
    with report.open("w") as out:
        demo = subprocess.Popen(
            [*DEMO, "--stay"],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline = time.monotonic() + 40
    while "tail -f" not in report.read_text():
        assert demo.poll() is None, report.read_text()
        assert time.monotonic() < deadline, report.read_text()
        time.sleep(0.05)

    demo.send_signal(number)

    assert demo.wait(10) == status
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert namespaces_of(demo.pid) == []


def test_missing_programs_are_named_with_their_packages(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    code = (
        "from ztunnel_py.cli import demo; demo.add_system_path = lambda: None; "
        "from ztunnel_py.__main__ import run; raise SystemExit(run(['demo']))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "apt-get install curl iproute2 iptables util-linux" in done.stderr


def test_forbidden_namespaces_end_with_77_and_the_kernels_words(tmp_path: Path) -> None:
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    unshare.chmod(0o755)

    done = subprocess.run(
        DEMO,
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 77
    assert "unshare: Operation not permitted" in done.stderr
