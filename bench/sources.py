# SPDX-License-Identifier: Apache-2.0
"""Copies of this proxy's sources, built for measuring whatever the working tree is built for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from ztunnel_py.cli.topology import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

RELEASE = REPOSITORY / "build" / "bench" / "release"
FLAVOUR = {"ZTUNNEL_BUILD": "release"}
_NAMES = ("ztunnel_py", "setup.py", "pyproject.toml", "README.md", "LICENSE")
_TIMEOUT_S = 600


class BuildError(Exception):
    """The sources do not compile; the text says why."""


def copy(place: Path) -> None:
    """Makes the sources in `place` those of the working tree; unchanged files keep their time."""
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-co", "--exclude-standard", "--", *_NAMES],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}
    generated = (REPOSITORY / "ztunnel_py" / "proto").glob("*_pb2.py*")
    names |= {str(path.relative_to(REPOSITORY)) for path in generated}
    for name in names:
        source, copied = REPOSITORY / name, place / name
        if not copied.exists() or copied.stat().st_mtime_ns != source.stat().st_mtime_ns:
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copied)
    for path in (place / "ztunnel_py").rglob("*"):
        is_made = path.suffix in {".so", ".pyc"} or path.is_dir()
        if not is_made and str(path.relative_to(place)) not in names:
            path.unlink()


def build() -> None:
    """Makes `RELEASE` a copy with a compiled core. Cost: seconds, or half a minute the first time.

    Raises:
        BuildError: it does not compile.
    """
    copy(RELEASE)
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=RELEASE,
        env={**os.environ, **FLAVOUR},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"could not compile the proxy: {first_errors(done.stdout + done.stderr)}")


def first_errors(output: str) -> str:
    """The first lines that speak of errors, or else the last lines."""
    lines = output.strip().splitlines()
    errors = [line.strip() for line in lines if "error:" in line.lower()]
    return "; ".join(errors[:3] or lines[-3:])
