# SPDX-License-Identifier: Apache-2.0
"""The commands that look at a running proxy, and at what they have saved of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import APPS, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns
SOCKS = "15080"
HOST = "10.255.255.1"


@contextlib.contextmanager
def talking(pod: Pod, port: int) -> Iterator[None]:
    """Within it, a client has said hello through the proxy and stays connected."""
    pod.run(["ip", "addr", "replace", f"{HOST}/32", "dev", "lo"])
    argv = [sys.executable, str(APPS), "talk", HOST, str(port), SOCKS]
    with subprocess.Popen(
        pod.command(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("hello\n")
        client.stdin.flush()
        assert [client.stdout.readline() for _ in range(2)] == ["connected\n", "hello\n"]
        yield
        client.stdin.close()


def command(pod: Pod, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = pod.command(["env", "-C", str(ROOT), sys.executable, "-m", "ztunnel_py", *arguments])
    return subprocess.run(argv, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_an_open_connection_is_shown_under_the_id_that_its_log_line_has(
    engine: str, launch: Callable[..., Proxy], pod: Pod, echo: int
) -> None:
    proxy = launch(
        ZTUNNEL_DATAPLANE=engine,
        UNSTABLE_ENABLE_SOCKS5="true",
        LOG_FORMAT="json",
        RUST_LOG="info,ztunnel::path=debug",
    )

    with talking(pod, echo):
        table = command(pod, "connections")
        (shown,) = json.loads(command(pod, "connections", "--json").stdout)
        other = command(pod, "connections", "--workload", "nobody", "--json")
        tunnels = command(pod, "tunnels", "--json")
    proxy.wait(lambda: '"message":"path"' in proxy.log(), "the path line")
    (path,) = [event for event in proxy.events() if event["scope"] == "ztunnel::path"]

    assert shown["id"] == path["conn"]
    assert shown["connectionId"] == path["connection.id"]
    assert (shown["upstreamBytes"], shown["downstreamBytes"]) == (6, 6)
    assert shown["originalDst"] == f"{HOST}:{echo}"
    assert shown["id"] in table.stdout
    assert [json.loads(each.stdout) for each in (other, tunnels)] == [[], []]


def test_a_connection_is_explained_by_a_proxy_and_by_its_file_alike(
    launch: Callable[..., Proxy], pod: Pod, tmp_path: Path
) -> None:
    launch()
    arguments = ("why", "shop/cart-0", "192.0.2.1:443")

    asked = command(pod, *arguments)
    read = command(pod, *arguments, "--state", str(tmp_path / "mesh.yaml"))

    assert (asked.returncode, asked.stdout) == (2, read.stdout)
    assert "fix: add 192.0.2.1 to the mesh: a workload with protocol HBONE" in asked.stdout


def test_a_saved_dump_shows_what_the_proxy_shows(
    launch: Callable[..., Proxy], pod: Pod, tmp_path: Path
) -> None:
    launch()
    saved = str(tmp_path / "dump.json")

    assert command(pod, "dump", saved).returncode == 0
    commands = [("workloads",), ("certs", "--json"), ("why", "shop/cart-0", "192.0.2.1:443")]
    for arguments in commands:
        asked, read = command(pod, *arguments), command(pod, *arguments, "--dump", saved)
        assert (read.returncode, read.stdout, read.stderr) == (asked.returncode, asked.stdout, "")
        assert "cart" in read.stdout


def test_a_level_that_is_set_holds_at_once(launch: Callable[..., Proxy], pod: Pod) -> None:
    proxy = launch(RUST_LOG="error")
    before = proxy.log()

    levels = [command(pod, "log", *argv).stdout for argv in ((), ("ztunnel::telemetry=info",), ())]
    command(pod, "log", "--reset", "warn")

    off = "hickory_server::server=off"
    assert levels == [f"{off},error\n", *[f"{off},ztunnel::telemetry=info,error\n"] * 2]
    proxy.wait(
        lambda: f"new log filter is {off},warn" in proxy.log(), "the line of the last change"
    )
    assert "new log filter" not in before


def test_without_a_proxy_the_command_fails_and_says_why(pod: Pod) -> None:
    ended = command(pod, "tunnels", "--admin", "127.0.0.1:1")

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no proxy answers at 127.0.0.1:1: ")
