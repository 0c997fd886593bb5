# SPDX-License-Identifier: Apache-2.0
"""Tells whether a file was written or replaced since one last looked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Stamp(NamedTuple):
    """Which file is at a path, and its last change. Links are followed, as volumes need it."""

    device: int
    inode: int
    changed_ns: int
    size: int
    touched_ns: int
    """Changes with whatever is done to it, also if its time is set back."""

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """The file as it is now; None if it cannot be seen."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns)
