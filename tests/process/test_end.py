# SPDX-License-Identifier: Apache-2.0
"""Ending: signals, drain, deadlines, exit status."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import APPS, OF_A_NODE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns

SOCKS = "15080"


class Talk:
    """A client's conversation with the echo application, through the proxy."""

    def __init__(self, pod: Pod, host: str, port: int) -> None:
        self._program = subprocess.Popen(
            pod.command([sys.executable, str(APPS), "talk", host, str(port), SOCKS]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._out() == "connected"

    def say(self, word: str) -> str:
        """Sends a word and returns the answer, or `closed`."""
        assert self._program.stdin is not None
        self._program.stdin.write(word + "\n")
        self._program.stdin.flush()
        return self._out()

    def hang_up(self) -> None:
        """Ends the conversation."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        if self._program.poll() is None:
            self._program.stdin.close()
            self._program.kill()
        self._program.wait()
        self._program.stdout.close()

    def _out(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline().rstrip()


@pytest.fixture
def talk(pod: Pod, echo: int) -> Iterator[Callable[[], Talk]]:
    """Starts conversations."""
    started: list[Talk] = []

    def start() -> Talk:
        started.append(Talk(pod, "10.255.255.1", echo))
        return started[-1]

    pod.run(["ip", "addr", "replace", "10.255.255.1/32", "dev", "lo"])
    yield start
    for one in started:
        one.hang_up()


@pytest.mark.spec("ops-102")
def test_an_idle_proxy_ends_at_once(launch: Callable[..., Proxy]) -> None:
    proxy = launch()

    proxy.signal(signal.SIGTERM)

    assert proxy.exit_status() == 0
    assert "shutdown complete" in proxy.log()


@pytest.mark.spec("dataplane-102", "ops-102")
def test_running_connections_finish_and_new_ones_are_refused(
    launch: Callable[..., Proxy], talk: Callable[[], Talk], pod: Pod
) -> None:
    proxy = launch(UNSTABLE_ENABLE_SOCKS5="true", CONNECTION_TERMINATION_DEADLINE="60s")
    conversation = talk()
    assert conversation.say("before") == "before"

    proxy.signal(signal.SIGTERM)
    refuse = ["curl", "-s", "--max-time", "2", "http://127.0.0.1:15080"]
    proxy.wait(lambda: pod.run(refuse, check=False).returncode == 7, "a refused connection")
    answer = conversation.say("after")
    is_running = proxy.program.poll() is None
    conversation.hang_up()

    assert answer == "after"
    assert is_running
    assert proxy.exit_status() == 0


@pytest.mark.spec("dataplane-103", "ops-102")
def test_what_outlives_the_deadline_is_cut_and_logged(
    launch: Callable[..., Proxy], talk: Callable[[], Talk]
) -> None:
    proxy = launch(
        UNSTABLE_ENABLE_SOCKS5="true", CONNECTION_TERMINATION_DEADLINE="300ms", LOG_FORMAT="json"
    )
    conversation = talk()
    assert conversation.say("before") == "before"

    proxy.signal(signal.SIGTERM)

    assert proxy.exit_status() == 0
    (line,) = [e for e in proxy.events() if e["message"] == "connection complete"]
    assert line["level"] == "error"
    assert line["error"] == "connection closed due to connection drain"
    assert conversation.say("after") == "closed"


@pytest.mark.spec("ops-103")
def test_a_second_interrupt_ends_at_once(
    launch: Callable[..., Proxy], talk: Callable[[], Talk]
) -> None:
    proxy = launch(UNSTABLE_ENABLE_SOCKS5="true", CONNECTION_TERMINATION_DEADLINE="60s")
    conversation = talk()
    assert conversation.say("before") == "before"

    proxy.signal(signal.SIGINT)
    proxy.wait(lambda: "received SIGINT" in proxy.log(), "the first interrupt")
    proxy.signal(signal.SIGINT)

    assert proxy.exit_status() == 0


CRASH = """
from ztunnel_py.dataplane.prefetch import Prefetch
from ztunnel_py.__main__ import run

async def broken(self):
    raise KeyError("prices")

Prefetch.run = broken
raise SystemExit(run(["proxy"]))
"""


def test_proxy_of_which_a_part_has_failed_ends_and_says_which(
    launch: Callable[..., Proxy],
) -> None:
    proxy = launch(
        ready=False, argv=[sys.executable, "-c", CRASH], **OF_A_NODE, INPOD_UDS="/nowhere"
    )

    assert proxy.exit_status() == 1
    assert "error: prefetching certificates failed: KeyError('prices')" in proxy.log()


def test_crash_of_the_core_leaves_a_message(launch: Callable[..., Proxy]) -> None:
    proxy = launch()

    proxy.signal(signal.SIGSEGV)

    assert proxy.exit_status() == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in proxy.log()


@pytest.mark.spec("ops-93")
def test_quitquitquit_takes_post_only(launch: Callable[..., Proxy]) -> None:
    proxy = launch()

    refused = proxy.get(15000, "/quitquitquit", "-o", "/dev/null", "-w", "%{http_code}")
    accepted = proxy.get(15000, "/quitquitquit", "-X", "POST")

    assert refused.stdout == "405"
    assert accepted.stdout == "shutdown now\n"
    assert proxy.exit_status() == 0
