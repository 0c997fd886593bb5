# SPDX-License-Identifier: Apache-2.0
"""Redirects the traffic of a pod, by the scripts of `iptables/`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.netns import Netns

SCRIPTS = Path(__file__).parents[2] / "iptables"
_PATIENCE_S = 30.0


class ScriptError(Exception):
    """A script failed; the text has its own words."""


class Redirection:
    """Rules of the iptables backend."""

    def apply(self, netns: Netns, options: Mapping[str, Any]) -> None:
        """Installs the rules; again is the same.

        Raises:
            ScriptError: they could not be installed.
        """
        _run(netns, "apply.sh", ["--dns"] if options.get("dns") else [])

    def remove(self, netns: Netns) -> None:
        """Removes them.

        Raises:
            ScriptError: they could not be removed.
        """
        _run(netns, "remove.sh", [])


def _run(netns: Netns, script: str, options: list[str]) -> None:
    descriptor = netns.fileno()
    argv = ["nsenter", f"--net=/proc/self/fd/{descriptor}", "sh", str(SCRIPTS / script), *options]
    try:
        done = subprocess.run(  # noqa: S603 - our own scripts
            argv,
            pass_fds=(descriptor,),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScriptError(f"{script}: {error}") from error
    if done.returncode != 0:
        raise ScriptError(f"{script}: {done.stderr.strip() or done.stdout.strip()}")
