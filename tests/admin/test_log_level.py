# SPDX-License-Identifier: Apache-2.0
"""`/logging` of the admin server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.admin.conftest import client_of
from ztunnel_py.admin.server import admin_server
from ztunnel_py.telemetry import log
from ztunnel_py.telemetry.filter import Level

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.admin.conftest import Client

_LOOPBACK = (("127.0.0.1", 0),)
_SHOWN = "current log level is hickory_server::server=off,"


@pytest.fixture
def read_log(tmp_path: Path) -> Callable[[], str]:
    """A log that starts at info, and what it holds at its end."""
    path = tmp_path / "log"
    file = path.open("wb")
    log.configure(fd=file.fileno())

    def read() -> str:
        log.close()
        file.close()
        return path.read_text()

    return read


@pytest.fixture
async def client(read_log: Callable[[], str]) -> AsyncIterator[Client]:
    """Of an admin server."""
    async with client_of(admin_server(dict, lambda: None, _LOOPBACK)) as found:
        yield found
    read_log()


async def _post(client: Client, query: str = "") -> str:
    reply = await client.ask(f"/logging{query}", "POST")
    assert (reply.status, reply.content_type) == (200, "text/plain")
    return reply.body.decode()


@pytest.mark.spec("ops-94")
async def test_level_for_all_stays_until_it_is_changed(client: Client) -> None:
    first = await _post(client)

    changed = await _post(client, "?level=debug")
    listed = await _post(client)

    assert first == f"{_SHOWN}info\n"
    assert changed == listed == f"{_SHOWN}debug\n"


@pytest.mark.spec("ops-95")
async def test_level_may_name_targets(client: Client) -> None:
    assert await _post(client, "?level=access=debug,info") == f"{_SHOWN}access=debug,info\n"
    assert await _post(client, "?level=access%3Dwarn") == f"{_SHOWN}access=warn,info\n"
    assert await _post(client, "?level=ztunnel::dns[{error}]=4") == (
        f"{_SHOWN}ztunnel::dns[{{error}}]=debug,access=warn,info\n"
    )


@pytest.mark.spec("ops-96")
@pytest.mark.parametrize(
    ("query", "left"),
    [("level=info&reset", "info"), ("reset", "info"), ("reset=&level=off", "off")],
)
async def test_reset_goes_back_to_the_start(client: Client, query: str, left: str) -> None:
    await _post(client, "?level=access=debug,hickory_server::server=trace,warn")

    assert await _post(client, f"?{query}") == f"{_SHOWN}{left}\n"


@pytest.mark.spec("ops-97")
@pytest.mark.parametrize(
    "level",
    ["nonsense", "mod:debug", "access", "Debug", "info,", "a=b=c", "a=9", "info,access=loud"],
)
async def test_level_that_is_none_changes_nothing(client: Client, level: str) -> None:
    reply = await client.ask(f"/logging?level={level}", "POST")

    assert reply.status == 400
    assert reply.body.decode().startswith(f"Invalid level provided: {level}\n\nusage: POST")
    assert await _post(client) == f"{_SHOWN}info\n"


@pytest.mark.spec("ops-98")
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_other_methods_get_the_usage_and_change_nothing(client: Client, method: str) -> None:
    reply = await client.ask("/logging?level=debug", method)

    assert reply.status == 405
    assert reply.body.startswith(b"Invalid HTTP method\n\nusage: POST /logging")
    assert await _post(client) == f"{_SHOWN}info\n"


async def test_empty_level_only_lists(client: Client) -> None:
    assert await _post(client, "?level=") == f"{_SHOWN}info\n"


async def test_filter_cannot_grow_without_bound(client: Client) -> None:
    statuses = [
        (await client.ask(f"/logging?level={n:07000}=info", "POST")).status for n in range(12)
    ]

    assert statuses == [200] * 9 + [400] * 3


async def test_change_is_obeyed_at_once_and_told(read_log: Callable[[], str]) -> None:
    told: list[bool] = []
    access = log.logger("access")
    server = admin_server(
        dict, lambda: None, _LOOPBACK, log_changed=lambda: told.append(access.enabled(Level.DEBUG))
    )

    async with client_of(server) as client:
        access.debug("before")
        await _post(client, "?level=access=debug,error")
        access.debug("between")
        await _post(client, "?reset")
        access.debug("after")

    lines = [line.split("\t")[1:4] for line in read_log().splitlines()]
    assert ["debug", "access", "between"] in lines
    assert not [line for line in lines if line[2] in ("before", "after")]
    assert told == [True, False]
