# SPDX-License-Identifier: Apache-2.0
"""Which process is the kubelet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ztunnel_py.redirection.kubelet import kubelet_uid
from ztunnel_py.redirection.programs import RedirectionError

if TYPE_CHECKING:
    from pathlib import Path


def process(proc: Path, number: int, comm: str, uid: int, *arguments: str) -> None:
    """Writes what the kernel shows of a process."""
    folder = proc / str(number)
    folder.mkdir()
    (folder / "comm").write_text(f"{comm}\n")
    (folder / "cmdline").write_bytes(b"\0".join(map(str.encode, arguments)))
    (folder / "status").write_text(f"Name:\t{comm}\nUid:\t{uid}\t7\t7\t7\n")


def test_first_kubelet_by_number_is_it(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    process(tmp_path, 90, "kubelet", 90, "/usr/bin/kubelet")
    process(tmp_path, 100, "kubelet", 100, "/usr/bin/kubelet")
    process(tmp_path, 2, "kubelet", 2, "/tmp/somebody")
    process(tmp_path, 1, "systemd", 0, "kubelet")

    assert kubelet_uid(tmp_path) == 90


@pytest.mark.parametrize(
    ("comm", "argument"), [("kubelite", "/snap/KubeLet"), ("k3s", "server"), ("kubelet", "kubelet")]
)
def test_other_names_of_a_kubelet(tmp_path: Path, comm: str, argument: str) -> None:
    process(tmp_path, 5, comm, 42, argument)

    assert kubelet_uid(tmp_path) == 42


def test_no_kubelet_is_an_error(tmp_path: Path) -> None:
    process(tmp_path, 1, "systemd", 0, "init")

    with pytest.raises(RedirectionError, match="no kubelet runs"):
        kubelet_uid(tmp_path)
