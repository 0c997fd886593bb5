# SPDX-License-Identifier: Apache-2.0
"""Starting: what is refused, with which words; what is there when it is ready."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import OF_A_NODE, PROXY, ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod

WORKLOAD = "{name: a, namespace: ns, workloadIps: [], services: {}}"


def start(pod: Pod, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a proxy that is expected to end by itself."""
    argv, env = pod.command(PROXY), environment(**changes)
    return subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=20)


@pytest.mark.netns
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"ENABLE_PROXY": "1"}, "ENABLE_PROXY", marks=pytest.mark.spec("ops-80")),
        ({"PROXY_MODE": "sidecar"}, "PROXY_MODE"),
        ({"PROXY_WORKLOAD_INFO": None}, "PROXY_WORKLOAD_INFO"),
        ({"PROXY_WORKLOAD_INFO": "only/two"}, "PROXY_WORKLOAD_INFO"),
        ({"HTTP2_FRAME_SIZE": "100"}, "HTTP2_FRAME_SIZE"),
        ({"RUST_LOG": "a=b=c"}, "RUST_LOG"),
        ({"FAKE_CA": None, "CA_ADDRESS": ""}, "CA_ADDRESS"),
        ({"FAKE_CA_ROOT_CERT": "/nowhere", "FAKE_CA_ROOT_KEY": "/nowhere"}, "FAKE_CA_ROOT_CERT"),
        ({"FAKE_CA_ROOT_KEY": "/nowhere"}, "FAKE_CA_ROOT_CERT"),
        ({"ZTUNNEL_DATAPLANE": "fast"}, "ZTUNNEL_DATAPLANE"),
        ({"COMPLIANCE_POLICY": "pqc", "ZTUNNEL_DATAPLANE": "reference"}, "COMPLIANCE_POLICY=pqc"),
        ({"LOCAL_XDS_PATH": "/nowhere/mesh.yaml"}, "/nowhere/mesh.yaml"),
        ({"LOCAL_XDS": "workloads: ["}, "LOCAL_XDS"),
        pytest.param(
            {"LOCAL_XDS": "{}", "LOCAL_XDS_PATH": "/nowhere"},
            "LOCAL_XDS_PATH",
            marks=pytest.mark.spec("state-117", "ops-92"),
        ),
        pytest.param(
            {"LOCAL_XDS": f"workloads: [{WORKLOAD.replace('name: a', 'name: a, nam: b')}]"},
            "nam",
            marks=pytest.mark.spec("state-115"),
        ),
        pytest.param(
            {"LOCAL_XDS": f"workloads: [{WORKLOAD.replace(', services: {}', '')}]"},
            "services",
            marks=pytest.mark.spec("state-116"),
        ),
        ({"LOCAL_XDS": f"workloads: [{WORKLOAD.replace('[]', '[10.0.0.300]')}]"}, "10.0.0.300"),
    ],
)
def test_a_wrong_setting_ends_the_start_and_is_named(
    changes: dict[str, str | None], named: str, pod: Pod
) -> None:
    ended = start(pod, **changes)

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


FIPS_WITHOUT_PROVIDER = """
openssl_conf = init
[init]
alg_section = algorithms
[algorithms]
default_properties = fips=yes
"""


@pytest.mark.netns
def test_fips_without_its_provider_ends_the_start(pod: Pod, tmp_path: Path) -> None:
    conf = tmp_path / "openssl.cnf"
    conf.write_text(FIPS_WITHOUT_PROVIDER)

    ended = start(pod, OPENSSL_CONF=str(conf))

    assert ended.returncode == 1
    assert f"error: OPENSSL_CONF={conf}: OpenSSL cannot speak TLS with it" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.netns
@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO >= (3, 5), reason="this OpenSSL knows the group")
def test_post_quantum_policy_ends_the_start_where_openssl_does_not_know_it(pod: Pod) -> None:
    ended = start(pod, COMPLIANCE_POLICY="pqc")

    assert ended.returncode == 1
    assert "error: COMPLIANCE_POLICY=pqc: X25519MLKEM768 is not known to OpenSSL" in ended.stderr


@pytest.mark.netns
def test_revocation_lists_are_in_force_before_anybody_is_served(
    launch: Callable[..., Proxy], tmp_path: Path
) -> None:
    lists = tmp_path / "ca-crl.pem"
    lists.write_bytes(b"")

    log = launch(CRL_PATH=str(lists)).log()

    assert log.index("revocation lists in force") < log.index("\tTask 'proxy' complete")


@pytest.mark.spec("ops-91")
def test_version_prints_the_build_and_unknown_commands_fail() -> None:
    def run(command: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "ztunnel_py", command]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=20)

    version, unknown = run("version"), run("foo")

    assert version.returncode == 0
    assert version.stdout.startswith('version.BuildInfo{Version:"')
    assert unknown.returncode == 1
    assert "unknown command: foo" in unknown.stderr


@pytest.mark.netns
@pytest.mark.spec("dataplane-6")
@pytest.mark.parametrize("port", [15001, 15006, 15008, 15000, 15020, 15021])
def test_an_occupied_port_ends_the_start(port: int, pod: Pod, launch: Callable[..., Proxy]) -> None:
    hold = f"import socket; s = socket.create_server(('', {port})); print('held'); s.accept()"
    holder = pod.popen([sys.executable, "-uc", hold], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"

    proxy = launch(ready=False)
    status = proxy.exit_status()
    holder.kill()
    holder.wait()
    holder.stdout.close()

    assert status == 1
    assert "error: failed to bind to address" in proxy.log()
    assert f":{port}: Address already in use" in proxy.log()


@pytest.mark.netns
@pytest.mark.parametrize("mode", ["dedicated", "shared"])
def test_a_second_proxy_with_the_same_ports_ends_and_names_one_while_the_first_serves(
    mode: str, launch: Callable[..., Proxy], tmp_path: Path
) -> None:
    of_a_node = {
        **OF_A_NODE,
        "INPOD_UDS": str(tmp_path / "agent"),
        "POD_NAME": "ztunnel-a",
        "POD_NAMESPACE": "istio-system",
        "SERVICE_ACCOUNT": "ztunnel",
    }
    changes = of_a_node if mode == "shared" else {}
    first = launch(ready=False, **changes)
    first.wait(lambda: "Task 'proxy' complete" in first.log(), "the first")

    second = launch(ready=False, **changes)

    assert second.exit_status() == 1
    assert "error: failed to bind to address [::]:15021: Address already in use" in second.log()
    assert "Traceback" not in second.log()
    assert first.get(15021, "/healthz/ready").stdout
    assert first.program.poll() is None


@pytest.mark.netns
@pytest.mark.spec("ops-108", "ops-116")
def test_a_ready_proxy_shows_its_state_and_no_empty_families(
    launch: Callable[..., Proxy],
) -> None:
    proxy = launch()

    dump = json.loads(proxy.get(15000, "/config_dump").stdout)
    metrics = proxy.metrics()

    assert [w["name"] for w in dump["workloads"]] == ["cart-0"]
    assert dump["config"]["dataplane"] == "native"
    assert 'istio_build{component="ztunnel",tag="unknown"} 1' in metrics
    assert "istio_tcp" not in metrics
    assert "process_max_fds" in metrics
    assert metrics.endswith("# EOF\n")


@pytest.mark.netns
def test_the_fake_authority_is_announced_at_every_start(launch: Callable[..., Proxy]) -> None:
    proxy = launch()

    assert "\twarn\tidentity\tFAKE_CA=true" in proxy.log()
