# SPDX-License-Identifier: Apache-2.0
"""Programs are run within bounds, and their failures are explained."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from ztunnel_py import netns
from ztunnel_py.redirection import programs
from ztunnel_py.redirection.programs import RedirectionError, call_inside, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are found first."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def program(folder: Path, name: str, body: str) -> None:
    """Writes a shell script."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_program_reads_and_prints(bin: Path) -> None:
    program(bin, "echoing", "echo $1; cat")

    assert run(["echoing", "one"], "two\n") == "one\ntwo\n"


def test_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(RedirectionError, match="'nft-of-dreams' is missing; install the package"):
        run(["nft-of-dreams"])


def test_failure_says_what_the_program_says(bin: Path) -> None:
    program(bin, "failing", "echo no such chain >&2; exit 3")

    with pytest.raises(RedirectionError, match=r"^failing failed with 3: no such chain$"):
        run(["failing"])


def test_missing_capability_is_named(bin: Path) -> None:
    program(bin, "iptables-weak", "echo Permission denied >&2; exit 4")

    with pytest.raises(RedirectionError, match="CAP_NET_ADMIN and CAP_NET_RAW are needed"):
        run(["iptables-weak"])


def test_program_that_prints_without_end_is_ended(
    bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "MAX_OUTPUT", 1 << 20)
    program(bin, "endless", "exec yes")

    with pytest.raises(RedirectionError, match="endless prints more than 1 MiB"):
        run(["endless"])


def test_program_that_hangs_is_ended(bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.1)
    program(bin, "hanging", "exec cat /dev/zero > /dev/null")

    with pytest.raises(RedirectionError, match="hanging failed with -9: ended by signal 9"):
        run(["hanging"])


@pytest.mark.spec("redir-59")
def test_work_in_a_namespace_has_a_thread_of_its_own_that_ends() -> None:
    home = netns.current()

    worker = call_inside(home, threading.current_thread)

    assert worker is not threading.current_thread()
    assert not worker.is_alive()
    assert netns.current().is_same(home)


def test_what_is_no_namespace_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file, pytest.raises(RedirectionError, match="cannot enter"):
        call_inside(netns.Netns(file.fileno()), lambda: None)
