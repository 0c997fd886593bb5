# SPDX-License-Identifier: Apache-2.0
"""The user of the node's kubelet, by which nft tells its probes from what others send.

Source: spec redirection, section 3.4.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ztunnel_py.redirection.programs import RedirectionError

_KUBELETS = ("kubelet", "kubelite")
_WITH_KUBELET_INSIDE = "k3s"


def kubelet_uid(proc: Path = Path("/proc")) -> int:
    """The real user id of the kubelet among the processes of `proc`, that of the node.

    Raises:
        RedirectionError: there is none.
    """
    numbered = (folder for folder in proc.iterdir() if folder.name.isdigit())
    for folder in sorted(numbered, key=lambda folder: int(folder.name)):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if _is_kubelet(folder):
                return _real_uid((folder / "status").read_text())
    raise RedirectionError(
        f"no kubelet runs among the processes of {proc}; is it that of the node (hostPID)?"
    )


def _is_kubelet(folder: Path) -> bool:
    name = (folder / "comm").read_text().strip()
    if name == _WITH_KUBELET_INSIDE:
        return True
    arguments = (folder / "cmdline").read_bytes().lower().split(b"\0")
    return name in _KUBELETS and any(b"kubelet" in argument for argument in arguments)


def _real_uid(status: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith("Uid:"))
    return int(line.split()[1])
