# SPDX-License-Identifier: Apache-2.0
"""Makes a Debian 13 root folder with this proxy in it, for figures with its OpenSSL 3.5."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import sources
from ztunnel_py.cli.topology import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUITE = "trixie"
PYTHON = "/opt/venv/bin/python"
ROOT = REPOSITORY / "build" / SUITE
_STAMP = REPOSITORY / "build" / f"{SUITE}.made"
_LOCK = REPOSITORY / "requirements" / "runtime.txt"
_PACKAGES = (
    *("python3", "python3-venv", "python3-dev", "python3-setuptools"),
    *("gcc", "libc6-dev", "pkg-config", "libssl-dev", "libnghttp2-dev"),
)
_TIMEOUT_S = 900

_ENTER = """
root=$1 folder=$2; shift 2
mkdir -p "$root$folder"
mount --bind "$folder" "$root$folder"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""


class RootError(Exception):
    """The root could not be made; the text says at which step and why."""


def inside(folder: Path, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the root, with `folder` in its usual place.

    What it mounts ends with it; its process id is that of the command.
    """
    return ["unshare", "--mount", "--", "sh", "-ec", _ENTER, "sh", str(ROOT), str(folder), *argv]


def make() -> None:
    """Makes the root unless it is there, and installs the proxy as it is now.

    Needs root and the package sources of the machine. Cost: minutes, once.

    Raises:
        RootError: a step failed.
    """
    state = _state()
    if not _STAMP.is_file() or _STAMP.read_text() != state:
        _STAMP.unlink(missing_ok=True)
        _bootstrap()
        _require()
        _STAMP.write_text(state)
    _install()


def versions(script: Path) -> dict[str, str]:
    """What `script` prints as JSON when the root's Python runs it."""
    argv = inside(script.parent, [PYTHON, str(script)])
    found: dict[str, str] = json.loads(_run("look into the root", argv))
    return found


def mirror() -> str:
    """The address that this machine has Debian's packages from, as apt knows it.

    Raises:
        RootError: apt has no Debian source.
    """
    argv = ["apt-get", "indextargets", "--format", "$(SITE)", "Origin: Debian", "Label: Debian"]
    found = _run("read apt's sources", argv).split()
    if not found:
        raise RootError("apt knows no Debian source; run: apt-get update")
    return found[0]


def _state() -> str:
    text = "\n".join([SUITE, *_PACKAGES, _LOCK.read_text()])
    return hashlib.sha256(text.encode()).hexdigest()


def _bootstrap() -> None:
    if shutil.which("debootstrap") is None:
        _run("read apt's lists", ["apt-get", "update", "-qq"])
        _run("install debootstrap", ["apt-get", "install", "-y", "-qq", "debootstrap"])
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    packages = ",".join(_PACKAGES)
    _run(
        "install Debian",
        ["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(ROOT), mirror()],
    )


def _require() -> None:
    """Installs what runtime.txt pins; fetched from outside, where pip is set up."""
    wheels = ROOT / "wheels"
    version = _run("ask for Python's version", _at_root("python3", "-c", _VERSION)).strip()
    arch = platform.machine()
    tags = [f"--platform=manylinux{tag}_{arch}" for tag in ("_2_28", "_2_17", "2014")]
    _run(
        "fetch the requirements",
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes"),
            *("--only-binary=:all:", f"--python-version={version}", *tags),
            *("--dest", str(wheels), "--requirement", str(_LOCK)),
        ],
    )
    _run("make the environment", _at_root("python3", "-m", "venv", "--system-site-packages", _VENV))
    shutil.copy(_LOCK, ROOT / "runtime.txt")
    offline = ("--no-index", "--find-links=/wheels", "--require-hashes", "-r", "/runtime.txt")
    _run("install the requirements", _at_root(*_PIP, *offline))


_VENV = str(Path(PYTHON).parents[1])
_VERSION = "import sys; print('{}.{}'.format(*sys.version_info))"
_PIP = (PYTHON, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--root-user-action=ignore")


def _install() -> None:
    """Compiles and installs the proxy from a copy of its sources."""
    sources.copy(ROOT / "src")
    _run(
        "install the proxy",
        _at_root(*_PIP, "--no-index", "--no-deps", "--no-build-isolation", "/src"),
        env=sources.FLAVOUR,
    )


def _at_root(*argv: str) -> list[str]:
    return ["chroot", str(ROOT), *argv]


def _run(step: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RootError(f"could not {step}: {error}") from error
    if done.returncode != 0:
        raise RootError(f"could not {step}: {sources.first_errors(done.stdout + done.stderr)}")
    return done.stdout
