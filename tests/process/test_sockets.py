# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of the program's sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import redirected
from tests.process.test_connections import converse
from tests.process.test_end import Talk

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns

OTHER = "10.255.255.1"


def sockets(pod: Pod, *options: str) -> list[str]:
    """Lines of `ss` in the pod, with marks."""
    return pod.run(["ss", "-Htne", *options]).stdout.splitlines()


@pytest.mark.parametrize(
    ("mark", "shown"),
    [
        pytest.param("123", "fwmark:0x7b", marks=pytest.mark.spec("dataplane-3")),
        pytest.param(None, None, marks=pytest.mark.spec("dataplane-4")),
    ],
)
def test_only_dialled_sockets_carry_the_mark_asked_for(
    mark: str | None, shown: str | None, launch: Callable[..., Proxy], pod: Pod, echo: int
) -> None:
    pod.run(["ip", "addr", "replace", f"{OTHER}/32", "dev", "lo"])
    launch(UNSTABLE_ENABLE_SOCKS5="true", PACKET_MARK=mark)
    conversation = Talk(pod, OTHER, echo)
    assert conversation.say("hello") == "hello"

    listening, living = sockets(pod, "-l"), sockets(pod)
    (dialled,) = [line for line in living if f"{OTHER}:{echo}" in line.split()[4]]
    conversation.hang_up()

    assert len([line for line in listening if ":150" in line]) >= 6
    assert not [line for line in listening if "fwmark" in line]
    assert [word for word in dialled.split() if word.startswith("fwmark")] == (
        [shown] if shown else []
    )


@pytest.mark.spec("dataplane-11")
def test_socks5_listens_on_loopback_and_is_no_target_itself(
    launch: Callable[..., Proxy], pod: Pod
) -> None:
    proxy = launch(UNSTABLE_ENABLE_SOCKS5="true")
    (listener,) = [line for line in sockets(pod, "-l") if ":15080" in line]

    with redirected(pod, 15080, 15001):
        answer = converse(pod, "127.0.0.1", 15080)

    assert listener.split()[3] == "127.0.0.1:15080"
    assert answer == "connected\nclosed\n"
    proxy.wait(lambda: "recursive call" in proxy.log(), "the denied line")
