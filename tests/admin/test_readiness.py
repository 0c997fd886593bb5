# SPDX-License-Identifier: Apache-2.0
"""Readiness tasks and their probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.admin.conftest import client_of
from ztunnel_py.admin.readiness import Readiness, readiness_server
from ztunnel_py.telemetry import log

if TYPE_CHECKING:
    from pathlib import Path

_LOOPBACK = (("127.0.0.1", 0),)


async def test_probe_is_500_with_the_sorted_pending_tasks_until_none_is_left() -> None:
    readiness = Readiness()
    readiness.register("state manager")
    readiness.register("proxy")
    async with client_of(readiness_server(readiness, _LOOPBACK)) as client:
        both = await client.ask("/healthz/ready")
        readiness.done("state manager")
        one = await client.ask("/healthz/ready")
        readiness.done("proxy")
        none = await client.ask("/healthz/ready")

    assert both[:3] == (500, "text/plain", b"not ready, pending: proxy, state manager\n")
    assert one[:3] == (500, "text/plain", b"not ready, pending: proxy\n")
    assert none[:3] == (200, "text/plain", b"ready\n")


@pytest.mark.spec("ops-99")
async def test_unsynced_proxy_is_500_with_tasks_and_other_methods_are_405() -> None:
    readiness = Readiness()
    readiness.register("state manager")
    readiness.register("proxy")
    async with client_of(readiness_server(readiness, _LOOPBACK)) as client:
        get = await client.ask("/healthz/ready")
        post = await client.ask("/healthz/ready", "POST")

    assert get[:3] == (500, "text/plain", b"not ready, pending: proxy, state manager\n")
    assert (post.status, post.body) == (405, b"")


def test_completion_is_logged_with_time_and_what_is_left(tmp_path: Path) -> None:
    times = iter([10.0, 10.0125, 11.0])
    path = tmp_path / "log"
    with path.open("wb") as file:
        log.configure(fd=file.fileno())
        readiness = Readiness(lambda: next(times))
        readiness.register("a")
        readiness.register("b")
        readiness.done("a")
        readiness.done("b")
        log.close()

    assert [line.split("\t")[2:4] for line in path.read_text().splitlines()] == [
        ["readiness", "Task 'a' complete (12.5ms), still awaiting 1 tasks"],
        ["readiness", "Task 'b' complete (1000.0ms), marking server ready"],
    ]


def test_task_cannot_be_completed_twice() -> None:
    readiness = Readiness()
    readiness.register("a")
    readiness.done("a")

    with pytest.raises(KeyError):
        readiness.done("a")
