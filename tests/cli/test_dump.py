# SPDX-License-Identifier: Apache-2.0
"""The command that saves a dump."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import answering
from tests.cli.dumps import ZTUNNEL
from ztunnel_py.admin.http import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.cli.conftest import Said

    Command = Callable[..., Awaitable[Said]]

TEXT = json.dumps(ZTUNNEL, indent=2)


@pytest.fixture
async def admin() -> AsyncIterator[str]:
    """Where a proxy is."""
    async with answering("/config_dump", Answer(200, TEXT)) as address:
        yield address


async def test_dump_is_saved_as_it_came(admin: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mesh.json"

    said = await command("dump", str(path), "--admin", admin)
    shown = await command("workloads", "--dump", str(path))

    assert said == (0, "", "")
    assert path.read_text() == TEXT
    assert len(shown.rows()) == 3


async def test_without_a_file_it_is_printed(admin: str, command: Command) -> None:
    assert (await command("dump", "--admin", admin)).out == f"{TEXT}\n"


async def test_what_is_no_dump_leaves_the_file_as_it_was(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mesh.json"
    path.write_text("before")

    async with answering("/config_dump", Answer(200, "<html>")) as address:
        said = await command("dump", str(path), "--admin", address)

    assert said.status == 1
    assert path.read_text() == "before"


async def test_file_that_cannot_be_written_is_told(
    admin: str, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "absent" / "mesh.json"

    said = await command("dump", str(path), "--admin", admin)

    assert (said.status, said.out) == (1, "")
    assert said.err == f"error: cannot write {path}: No such file or directory\n"
