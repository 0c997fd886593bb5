# SPDX-License-Identifier: Apache-2.0
"""Ending before the proxy is ready: also as the first process of a container, as pods run it.

To that one the kernel gives no signal that it does not handle.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import APPS, OF_A_NODE, PROXY
from tests.support.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import Program, Proxy

pytestmark = pytest.mark.netns

PROMPT_S = 2.0
"""What somebody who deletes a pod may have to wait, seconds."""
AS_FIRST = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *PROXY]
BEFORE_THE_LOOP = "data plane: native"
LOADING = "listener established"
"""Of readiness, which says so while the mesh is read."""
WORKLOAD = (
    "  - {{uid: c//Pod/ns/w{0}, name: w{0}, namespace: ns, serviceAccount: s, protocol: HBONE,"
    " trustDomain: cluster.local, workloadIps: [10.0.{1}.{2}], services: {{}}}}\n"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A state file of 10,000 workloads, which takes about a second to load."""
    path = tmp_path_factory.mktemp("mesh") / "large.yaml"
    lines = (WORKLOAD.format(i, i // 256, i % 256) for i in range(10_000))
    path.write_text("workloads:\n" + "".join(lines))
    return str(path)


def first_process(of: Proxy) -> int:
    """The pid, as we see it, of the first process of the namespace that `unshare` has made."""
    path = Path(f"/proc/{of.program.pid}/task/{of.program.pid}/children")
    return int(path.read_text().split()[0])


def ended(proxy: Proxy, pid: int, number: signal.Signals) -> tuple[int, bool]:
    """Sends a signal; the exit status, and whether it came soon."""
    begun = time.monotonic()
    os.kill(pid, number)
    status = proxy.exit_status()
    return status, time.monotonic() - begun < PROMPT_S


@pytest.mark.parametrize("moment", [BEFORE_THE_LOOP, LOADING])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_is_ended_by_the_signal_itself(
    number: signal.Signals, moment: str, launch: Callable[..., Proxy], large: str
) -> None:
    proxy = launch(ready=False, LOCAL_XDS_PATH=large)
    proxy.wait(lambda: moment in proxy.log(), moment)

    status, is_prompt = ended(proxy, proxy.program.pid, number)

    assert (status, is_prompt) == (-number, True)
    assert "15000" not in proxy.log()
    assert "Traceback" not in proxy.log()


@pytest.mark.parametrize("moment", [BEFORE_THE_LOOP, LOADING])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_of_a_container_ends_as_soon_with_the_status_of_the_signal(
    number: signal.Signals, moment: str, launch: Callable[..., Proxy], large: str
) -> None:
    proxy = launch(ready=False, argv=AS_FIRST, LOCAL_XDS_PATH=large)
    proxy.wait(lambda: moment in proxy.log(), moment)

    status, is_prompt = ended(proxy, first_process(proxy), number)

    assert (status, is_prompt) == (128 + number, True)
    assert "15000" not in proxy.log()
    assert "Traceback" not in proxy.log()


@pytest.mark.parametrize("argv", [PROXY, AS_FIRST], ids=["process", "first process"])
@pytest.mark.parametrize("shared", [False, True], ids=["dedicated", "shared"])
def test_a_proxy_that_waits_for_a_silent_control_plane_ends_in_order(
    argv: list[str],
    shared: bool,
    launch: Callable[..., Proxy],
    programs: Callable[..., Program],
    tmp_path: Path,
) -> None:
    silent = programs(str(APPS), "silent")
    port = silent.line()
    changes = OF_A_NODE | {"INPOD_UDS": str(tmp_path / "agent")} if shared else {}
    proxy = launch(
        ready=False,
        argv=argv,
        XDS_ADDRESS=f"127.0.0.1:{port}",
        XDS_ROOT_CA=Authority().pem.decode(),
        **changes,
    )
    assert silent.line() == "connected"

    pid = proxy.program.pid if argv is PROXY else first_process(proxy)
    status, is_prompt = ended(proxy, pid, signal.SIGTERM)

    assert (status, is_prompt) == (0, True)
    assert "shutdown complete" in proxy.log()
    assert "Traceback" not in proxy.log()


def test_a_proxy_that_waits_for_a_name_server_ends_in_order(
    launch: Callable[..., Proxy], programs: Callable[..., Program], tmp_path: Path
) -> None:
    name_server = programs(str(APPS), "silent-dns")
    assert name_server.line() == "ready"
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    script = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
    proxy = launch(
        ready=False,
        argv=["unshare", "--mount", "sh", "-c", script, "sh", *PROXY],
        XDS_ADDRESS="istiod.istio-system.svc:15012",
        XDS_ROOT_CA=Authority().pem.decode(),
    )
    assert name_server.line() == "asked"

    status, is_prompt = ended(proxy, proxy.program.pid, signal.SIGTERM)

    assert (status, is_prompt) == (0, True)
    assert "shutdown complete" in proxy.log()


def test_closed_standard_streams_do_no_harm(launch: Callable[..., Proxy]) -> None:
    proxy = launch(output="<&- >&- 2>&-")
    streams = {os.readlink(f"/proc/{proxy.program.pid}/fd/{fd}") for fd in range(3)}

    proxy.signal(signal.SIGTERM)

    assert streams == {os.devnull}
    assert proxy.exit_status() == 0
