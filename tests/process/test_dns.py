# SPDX-License-Identifier: Apache-2.0
"""The DNS server of a dedicated proxy: on unless it is switched off, and part of readiness."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import PROXY, ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns
LISTENING = ["ss", "-Htuln", "sport", "=", "15053"]


@pytest.fixture
def conf(tmp_path: Path) -> str:
    """A resolv.conf."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    return str(path)


def test_server_is_there_before_the_proxy_is_ready(
    pod: Pod, launch: Callable[..., Proxy], conf: str
) -> None:
    proxy = launch(ISTIO_META_DNS_CAPTURE=None, ZTUNNEL_RESOLV_CONF=conf)

    proxy.wait(lambda: "Task 'dns proxy' complete" in proxy.log(), "the task's line")
    assert len(pod.run(LISTENING).stdout.splitlines()) == 4
    assert "istio_dns" not in proxy.metrics()


@pytest.mark.spec("ops-86")
def test_switched_off_there_is_neither_a_server_nor_a_task(
    pod: Pod, launch: Callable[..., Proxy]
) -> None:
    proxy = launch(ISTIO_META_DNS_CAPTURE="false")

    assert "dns proxy" not in proxy.log()
    assert pod.run(LISTENING).stdout == ""


def test_while_the_control_plane_is_missing_the_server_is_not_ready_either(
    launch: Callable[..., Proxy], conf: str
) -> None:
    proxy = launch(
        ready=False,
        ISTIO_META_DNS_CAPTURE="true",
        ZTUNNEL_RESOLV_CONF=conf,
        XDS_ADDRESS="http://127.0.0.1:1",
    )
    expected = "not ready, pending: dns proxy, proxy, state manager\n"
    proxy.wait(lambda: proxy.get(15021, "/healthz/ready").stdout == expected, "the pending tasks")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ZTUNNEL_RESOLV_CONF": "/nowhere/resolv.conf"}, "/nowhere/resolv.conf"),
        ({"ISTIO_META_DNS_PROXY_ADDR": "192.0.2.1:15053"}, "192.0.2.1:15053"),
    ],
)
def test_server_that_cannot_be_had_is_named(
    pod: Pod, conf: str, changes: dict[str, str], named: str
) -> None:
    usual = {"ISTIO_META_DNS_CAPTURE": "true", "ZTUNNEL_RESOLV_CONF": conf, "LOCAL_XDS": "{}"}
    env = environment(**usual | changes)
    done = subprocess.run(
        pod.command(PROXY), env=env, cwd=ROOT, capture_output=True, text=True, timeout=20
    )

    assert done.returncode == 1
    assert named in done.stdout + done.stderr
