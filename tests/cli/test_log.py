# SPDX-License-Identifier: Apache-2.0
"""The command that shows and changes log levels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import answering
from ztunnel_py.admin.http import Answer
from ztunnel_py.admin.server import admin_server
from ztunnel_py.telemetry import log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.cli.conftest import Said

    Command = Callable[..., Awaitable[Said]]

OFF = "hickory_server::server=off"


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[str]:
    """Where a proxy's admin server is, whose log is at info."""
    with (tmp_path / "log").open("wb") as file:
        log.configure(fd=file.fileno())
        server = admin_server(dict, lambda: None, (("127.0.0.1", 0),))
        await server.open()
        yield "{}:{}".format(*server.address)
        await server.close()
        log.close()


async def test_levels_are_shown_set_and_reset(admin: str, command: Command) -> None:
    said = [
        await command("log", *argv, "--admin", admin)
        for argv in ((), ("access=debug,warn",), (), ("--reset", "error"), ("--reset",))
    ]

    assert [one.status for one in said] == [0] * 5
    assert [one.out for one in said] == [
        f"{OFF},info\n",
        f"{OFF},access=debug,warn\n",
        f"{OFF},access=debug,warn\n",
        f"{OFF},error\n",
        f"{OFF},info\n",
    ]


async def test_programs_get_json(admin: str, command: Command) -> None:
    said = await command("log", "debug", "--json", "--admin", admin)

    assert json.loads(said.out) == {"level": f"{OFF},debug"}


@pytest.mark.parametrize("level", ["nonsense", "mod:debug", "a=b=c", "ü\x1b[31m"])
async def test_level_that_is_none_changes_nothing(level: str, admin: str, command: Command) -> None:
    said = await command("log", level, "--admin", admin)

    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("error: Invalid level provided: ")
    assert said.err[:-1].isprintable()
    assert (await command("log", "--admin", admin)).out == f"{OFF},info\n"


async def test_answer_of_ztunnel_is_understood(command: Command) -> None:
    answer = Answer(200, f"current log level is {OFF},info\n")

    async with answering("/logging", answer) as address:
        said = await command("log", "--admin", address)

    assert said.out == f"{OFF},info\n"
