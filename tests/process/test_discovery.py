# SPDX-License-Identifier: Apache-2.0
"""A proxy and its control plane: nobody is served before it has spoken; it may leave after that."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import APPS, STATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process.conftest import Program, Proxy
    from ztunnel_py.cli.topology import Pod

pytestmark = pytest.mark.netns

MESH = (
    STATE.replace("cart-0", "cart-1").replace('["{ip}"]', '["10.9.9.9"]')
    + """
policies:
  - {{name: p, namespace: shop, scope: Namespace, action: Allow, dryRun: false, rules: [[]]}}
"""
).format()
HANDS_OFF_S = 0.3
"""How long nothing has to happen to a connection that is not served."""


@pytest.fixture
def istiod(programs: Callable[..., Program], tmp_path: Path) -> tuple[Program, dict[str, str]]:
    """A control plane that does what it is told, and the settings of its clients."""
    (tmp_path / "istiod.yaml").write_text(MESH)
    argv = ["-m", "tests.process.istiod_steps", str(tmp_path / "istiod.yaml"), str(tmp_path)]
    program = programs(*argv)
    settings = {
        "XDS_ADDRESS": program.line(),
        "XDS_ROOT_CA": str(tmp_path / "root-cert.pem"),
        "UNSTABLE_ENABLE_SOCKS5": "true",
    }
    return program, settings


def readiness(proxy: Proxy) -> str:
    """What the probe is told."""
    return proxy.get(15021, "/healthz/ready").stdout


@pytest.mark.spec("state-25", "dataplane-12")
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_connections_wait_until_everything_has_come(
    engine: str,
    istiod: tuple[Program, dict[str, str]],
    launch: Callable[..., Proxy],
    programs: Callable[..., Program],
) -> None:
    control, settings = istiod
    proxy = launch(ready=False, ZTUNNEL_DATAPLANE=engine, **settings)
    proxy.wait(lambda: 'component="outbound"' in proxy.log(), "the listeners")
    caller = programs(str(APPS), "talk", "127.0.0.1", "15001")
    assert caller.line() == "connected"
    caller.tell("hello")

    control.tell("Address")
    assert control.line() == "accepted"
    assert caller.is_silent(HANDS_OFF_S)
    assert "not ready, pending: " in readiness(proxy)
    assert "state manager" in readiness(proxy)

    control.tell("Authorization")
    assert control.line() == "accepted"
    proxy.wait_ready()
    assert caller.line() == "closed"


@pytest.mark.spec("state-27", "ops-100")
def test_a_ready_proxy_stays_ready_when_its_control_plane_is_gone(
    istiod: tuple[Program, dict[str, str]],
    launch: Callable[..., Proxy],
    programs: Callable[..., Program],
    pod: Pod,
    echo: int,
) -> None:
    control, settings = istiod
    proxy = launch(ready=False, **settings)
    for type_url in ("bad", "Address", "Authorization"):
        control.tell(type_url)
        assert control.line() == ("refused" if type_url == "bad" else "accepted")
    proxy.wait_ready()

    control.kill()
    failed = 'istio_xds_connection_terminations_total{reason="ConnectionError"}'
    proxy.wait(lambda: failed in proxy.metrics(), "a failed attempt to connect")

    pod.run(["ip", "addr", "replace", "10.255.255.1/32", "dev", "lo"])
    caller = programs(str(APPS), "talk", "10.255.255.1", str(echo), "15080")
    caller.tell("hello")
    assert [caller.line(), caller.line()] == ["connected", "hello"]
    assert readiness(proxy) == "ready\n"


def test_what_was_heard_is_shown_on_top_of_what_is_local(
    istiod: tuple[Program, dict[str, str]], launch: Callable[..., Proxy]
) -> None:
    control, settings = istiod
    proxy = launch(ready=False, **settings)
    for type_url in ("Address", "Authorization"):
        control.tell(type_url)
        assert control.line() == "accepted"
    proxy.wait_ready()

    dump = json.loads(proxy.get(15000, "/config_dump").stdout)
    metrics = proxy.metrics()

    assert [w["name"] for w in dump["workloads"]] == ["cart-0", "cart-1"]
    assert [w["name"] for w in dump["staticConfig"]["workloads"]] == ["cart-0"]
    assert [p["name"] for p in dump["policies"]] == ["p"]
    assert dump["staticConfig"]["policies"] == []
    assert dump["config"]["xdsAddress"] == settings["XDS_ADDRESS"]
    for name in ("istio.workload.Address", "istio.security.Authorization"):
        assert f'istio_xds_message_total{{url="type.googleapis.com/{name}"}} 1' in metrics


def test_discovery_can_be_logged_in_detail_and_alone(
    istiod: tuple[Program, dict[str, str]], launch: Callable[..., Proxy]
) -> None:
    control, settings = istiod
    proxy = launch(ready=False, RUST_LOG="error,ztunnel::xds=debug", **settings)
    for type_url in ("Address", "Authorization"):
        control.tell(type_url)
        assert control.line() == "accepted"
    proxy.wait_ready()

    levels = {tuple(line.split("\t")[1:3]) for line in proxy.log().splitlines()}

    assert ("debug", "xds") in levels
    assert {scope for level, scope in levels if level in ("info", "debug")} == {"xds"}


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_proxy_that_waits_for_its_control_plane_can_be_ended(
    engine: str, launch: Callable[..., Proxy], programs: Callable[..., Program]
) -> None:
    proxy = launch(ready=False, ZTUNNEL_DATAPLANE=engine, XDS_ADDRESS="https://localhost:1")
    proxy.wait(lambda: "XDS client" in proxy.log(), "an attempt")
    caller = programs(str(APPS), "talk", "127.0.0.1", "15001")
    assert caller.line() == "connected"

    proxy.signal(signal.SIGTERM)

    assert proxy.exit_status() == 0
    assert "shutdown complete" in proxy.log()
    assert "connection complete" not in proxy.log()


@pytest.mark.spec("state-3", "ops-81")
def test_without_a_control_plane_local_state_is_enough(launch: Callable[..., Proxy]) -> None:
    proxy = launch(XDS_ADDRESS="")

    assert "Task 'state manager' complete" in proxy.log()
    assert "istio_xds" not in proxy.metrics()
    assert "\txds" not in proxy.log()


def test_a_mesh_file_can_be_served_to_a_proxy_that_has_none(
    programs: Callable[..., Program], launch: Callable[..., Proxy], tmp_path: Path
) -> None:
    mesh = tmp_path / "served.yaml"
    mesh.write_text(MESH)
    address = programs("-m", "tests.support.istiod", str(mesh), str(tmp_path)).line()

    proxy = launch(
        LOCAL_XDS_PATH=None, XDS_ADDRESS=address, XDS_ROOT_CA=str(tmp_path / "root-cert.pem")
    )

    dump = json.loads(proxy.get(15000, "/config_dump").stdout)
    assert [w["name"] for w in dump["workloads"]] == ["cart-1"]
    assert dump["staticConfig"] == {"workloads": [], "services": [], "policies": []}


def test_an_address_is_asked_for_when_somebody_connects_to_it(
    programs: Callable[..., Program],
    launch: Callable[..., Proxy],
    pod: Pod,
    echo: int,
    tmp_path: Path,
) -> None:
    mesh = tmp_path / "served.yaml"
    mesh.write_text(MESH.replace("10.9.9.9", "10.255.255.1").replace("HBONE", "TCP"))
    pod.run(["ip", "addr", "replace", "10.255.255.1/32", "dev", "lo"])
    address = programs("-m", "tests.support.istiod", str(mesh), str(tmp_path)).line()
    proxy = launch(
        XDS_ADDRESS=address,
        XDS_ROOT_CA=str(tmp_path / "root-cert.pem"),
        XDS_ON_DEMAND="true",
        UNSTABLE_ENABLE_SOCKS5="true",
    )
    before = json.loads(proxy.get(15000, "/config_dump").stdout)

    caller = programs(str(APPS), "talk", "10.255.255.1", str(echo), "15080")
    caller.tell("hello")
    assert [caller.line(), caller.line()] == ["connected", "hello"]
    caller.kill()
    proxy.wait(lambda: "connection complete" in proxy.log(), "the access line")

    assert [w["name"] for w in before["workloads"]] == ["cart-0"]
    assert 'dst.workload="cart-1"' in proxy.log()
