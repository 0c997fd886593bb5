# SPDX-License-Identifier: Apache-2.0
"""A log that nobody takes: traffic goes on, what is missing is counted and said."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import APPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns
HOST = "10.255.255.1"
MARK = "1337"
ENDED = '"connection complete"'


@contextlib.contextmanager
def captured(pod: Pod, port: int) -> Iterator[None]:
    """Within it, what goes to the host is captured, but for what the proxy itself dials."""
    pod.run(["ip", "addr", "replace", f"{HOST}/32", "dev", "lo"])
    match = f"OUTPUT -d {HOST} -p tcp --dport {port} -m mark ! --mark {MARK}"
    rule = [*match.split(), "-j", "REDIRECT", "--to-ports", "15001"]
    pod.run(["iptables", "-t", "nat", "-A", *rule])
    try:
        yield
    finally:
        pod.run(["iptables", "-t", "nat", "-D", *rule])


def served(pod: Pod, port: int, count: int) -> int:
    """How many of so many connections through the proxy were answered."""
    with captured(pod, port):
        said = pod.run([sys.executable, str(APPS), "churn", HOST, str(port), str(count)]).stdout
    answered: int = json.loads(said)["answered"]
    return answered


def n_lost(proxy: Proxy, reason: str) -> int:
    """Of the metrics."""
    name = f'ztunnel_py_log_lines_lost_total{{reason="{reason}"}}'
    (line,) = [line for line in proxy.metrics().splitlines() if line.startswith(name)]
    return int(line.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("output", "error"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_a_log_that_cannot_be_written_is_said_once_counted_and_does_no_harm(
    output: str, error: str, launch: Callable[..., Proxy], pod: Pod, echo: int
) -> None:
    proxy = launch(output=output)
    before = n_lost(proxy, "failed")

    answered = served(pod, echo, 5)
    proxy.wait(lambda: n_lost(proxy, "failed") >= before + 5, "lines to be counted")

    assert (before > 0, answered) == (True, 5)
    assert (
        proxy.log() == f"error: cannot write the log: {error}; lines are lost until that is over\n"
    )


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_while_nobody_reads_the_log_traffic_goes_on_and_no_line_is_lost(
    engine: str, launch: Callable[..., Proxy], pod: Pod, echo: int, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    proxy = launch(output=f">{tmp_path}/log", LOG_FORMAT="json", ZTUNNEL_DATAPLANE=engine)

    answered = served(pod, echo, 100)

    assert answered == 100
    assert n_lost(proxy, "full") == 0
    text = b""

    def n_ended() -> int:
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            text += os.read(reader, 1 << 16)
        return text.decode().count(ENDED)

    proxy.wait(lambda: n_ended() == 100, "all lines")
    os.close(reader)
