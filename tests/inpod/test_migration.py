# SPDX-License-Identifier: Apache-2.0
"""What a closing listener holds goes to the other one of its port."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from ztunnel_py import netns
from ztunnel_py.cli.topology import NETNS_DIR, Mesh, NamespacesForbiddenError
from ztunnel_py.inpod import migration
from ztunnel_py.inpod.migration import SETTING, handing_over
from ztunnel_py.netns import open_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ztunnel_py.netns import Netns

pytestmark = pytest.mark.netns
PORT = 15006


@pytest.fixture
def pod() -> Iterator[Netns]:
    """The namespace of a pod."""
    try:
        with Mesh({"pod": "node-a"}) as mesh:
            yield netns.at(f"{NETNS_DIR}/{mesh.pod('pod').netns}")
    except NamespacesForbiddenError as error:
        pytest.skip(f"NAMESPACE TESTS DO NOT RUN HERE: {error}")


def setting(pod: Netns) -> str:
    """Whether it is on."""
    with netns.inside(pod):
        return SETTING.read_text().strip()


def listener(pod: Netns) -> socket.socket:
    """One of several."""
    sock = open_socket(pod, socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", PORT))
    sock.listen()
    return sock


async def test_connection_that_nobody_has_accepted_goes_to_the_other_listener(pod: Netns) -> None:
    old = listener(pod)
    client = open_socket(pod, socket.AF_INET, socket.SOCK_STREAM)
    client.connect(("127.0.0.1", PORT))
    new = listener(pod)

    async with handing_over([pod]):
        assert setting(pod) == "1"
        old.close()

    assert setting(pod) == "0"
    new.settimeout(5)
    served, _ = new.accept()
    served.sendall(b"hello")
    client.settimeout(5)
    assert client.recv(5) == b"hello"
    for sock in (served, client, new):
        sock.close()


async def test_setting_that_was_on_stays_on(pod: Netns) -> None:
    with netns.inside(pod):
        SETTING.write_text("1")

    async with handing_over([pod]):
        pass

    assert setting(pod) == "1"


async def test_pod_that_is_gone_keeps_nothing_from_the_others(pod: Netns) -> None:
    with netns.inside(pod):
        gone = netns.at("/proc/thread-self/ns/net")
    gone.close()

    async with handing_over([gone, pod]):
        assert setting(pod) == "1"

    assert setting(pod) == "0"


async def test_why_it_cannot_be_set_is_logged_once(
    pod: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(migration, "SETTING", tmp_path / "absent")

    async with handing_over([pod, pod]):
        pass

    said = capfd.readouterr().err
    assert said.count("tcp_migrate_req cannot be set") == 1
    assert "No such file" in said
