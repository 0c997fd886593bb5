# SPDX-License-Identifier: Apache-2.0
"""The command: `ztunnel-py proxy`, which is what runs without one, and the others of `cli`."""

from __future__ import annotations

import os
import sys

_COMPLETE = "_ZTUNNEL_PY_COMPLETE"
_HELP = {"-h", "--help"}


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0 in order, 1 could not be done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    is_proxy = not arguments or arguments[0] == "proxy"
    if is_proxy and not _HELP.intersection(arguments) and _COMPLETE not in os.environ:
        from ztunnel_py.start import start  # needs no library of the command line

        return start()
    from ztunnel_py.cli import root

    return root.run(arguments)


if __name__ == "__main__":
    sys.exit(run())
