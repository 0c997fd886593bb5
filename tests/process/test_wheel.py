# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed where nothing is but what it asks for: what is in it, and that it runs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import ROOT
from ztunnel_py import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import Proxy

pytestmark = pytest.mark.xdist_group("wheel")

BIN = Path(sys.executable).parent


def run(*argv: str | Path) -> str:
    """What a program prints that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel as `make wheel` builds it."""
    return Path(run(ROOT / "tools/wheel.sh", BIN, tmp_path_factory.mktemp("dist")).strip())


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh virtual environment with the wheel and what is pinned for it.

    The pinned packages are links to those that run the tests, so that nothing is downloaded.
    """
    venv = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    (site,) = venv.glob("lib/python*/site-packages")
    pinned = (ROOT / "requirements/runtime.txt").read_text()
    for name in re.findall(r"^([\w.-]+)==", pinned, re.M):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or () if file.parts[0] != ".."}:
            if top != "__pycache__":
                (site / top).symlink_to(str(package.locate_file(top)))
    pip = (BIN / "pip", "--python", venv / "bin/python")
    run(*pip, "install", "--no-index", wheel)  # fails where something that it requires is missing
    return venv / "bin/ztunnel-py"


def test_wheel_has_the_core_and_the_messages_but_no_sources_of_them(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        told = archive.read(metadata).decode()

    suffixes = {Path(name).suffix for name in names if name.startswith("ztunnel_py/")}
    assert suffixes == {".py", ".pyi", ".so", ".typed"}
    messages = {
        f"ztunnel_py/proto/{one.stem}_pb2.py" for one in (ROOT / "ztunnel_py/proto").glob("*.proto")
    }
    assert messages
    assert messages <= names
    assert {name.split("/")[0] for name in names} == {"ztunnel_py", metadata.split("/")[0]}
    for line in ("Name: ztunnel-py", f"Version: {__version__}", "License-Expression: Apache-2.0"):
        assert f"{line}\n" in told


@pytest.mark.netns
def test_installed_wheel_prints_its_version_and_serves(
    installed: Path, launch: Callable[..., Proxy]
) -> None:
    proxy = launch(argv=[str(installed), "proxy"])
    quits = proxy.get(15000, "/quitquitquit", "-X", "POST")

    assert f'Version:"{__version__}"' in run(installed, "version")
    assert quits.stdout == "shutdown now\n"
    assert proxy.exit_status() == 0
