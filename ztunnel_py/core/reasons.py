# SPDX-License-Identifier: Apache-2.0
"""Prints the C form of the table of endings: `python -m ztunnel_py.core.reasons > FILE`."""

from __future__ import annotations

import sys

from ztunnel_py.errors import Flag, Reason

_HEAD = """\
/* SPDX-License-Identifier: Apache-2.0 */
/* Made from ztunnel_py/errors.py: REASON(name, number, status, flag, is_early). */
"""


def table() -> str:
    """The text of `reason.def`; a flag is its column among the counters."""
    columns = list(Flag)
    return _HEAD + "".join(
        f"REASON({reason.name}, {reason.number}, {reason.status}, "
        f"{columns.index(reason.flag)}, {reason.is_early:d})\n"
        for reason in Reason
    )


if __name__ == "__main__":
    sys.stdout.write(table())
