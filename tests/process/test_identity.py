# SPDX-License-Identifier: Apache-2.0
"""Where a running proxy has its certificate from, and how it shows it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.process.conftest import ROOT, STATE
from tests.support.authority import Authority
from tests.support.istio_ca import TOKEN
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod
    from ztunnel_py.identity.certificates import WorkloadCertificate

pytestmark = pytest.mark.netns

CART = Identity("cluster.local", "shop", "cart")


def certs(pod: Pod, *options: str) -> list[dict[str, Any]]:
    """What the command says of the proxy in the pod."""
    program = [sys.executable, "-m", "ztunnel_py", "certs", "--json", *options]
    argv = ["env", "-C", str(ROOT), *program]
    return json.loads(pod.run(argv).stdout)  # type: ignore[no-any-return]


def write(certificate: WorkloadCertificate, directory: Path) -> dict[str, str | None]:
    """The certificate as files, and the settings that name them."""
    settings: dict[str, str | None] = {"FAKE_CA": None, "ZTUNNEL_IDENTITY_SOURCE": "files"}
    for name, text in (
        ("CERTIFICATE", certificate.chain_pem),
        ("KEY", certificate.key_pem),
        ("ROOTS", certificate.roots_pem),
    ):
        path = directory / f"{name}.pem"
        path.write_bytes(text)
        settings[f"ZTUNNEL_{name}_FILE"] = str(path)
    return settings


def test_certificate_of_the_files_is_served_shown_and_replaced(
    launch: Callable[..., Proxy], pod: Pod, tmp_path: Path
) -> None:
    root = Authority("host")
    proxy = launch(**write(root.issue(CART), tmp_path))
    proxy.wait(lambda: bool(certs(pod)), "a certificate")
    first = certs(pod, "--expiring", "7d")
    assert [(one["identity"], one["state"]) for one in first] == [(str(CART), "Available")]
    assert not certs(pod, "--expiring", "1h")
    assert f'istio_certificate_failures_total{{identity="{CART}"}} 0' in proxy.metrics()

    write(root.issue(CART), tmp_path)

    proxy.wait(lambda: certs(pod) != first, "the next certificate")
    assert str(CART) in proxy.get(15000, "/config_dump").stdout


@pytest.fixture
def istiod(pod: Pod, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Discovery and authority at one address, and the settings of its clients."""
    (tmp_path / "istiod.yaml").write_text(STATE.format(ip=pod.ipv4))
    argv = ["-m", "tests.support.istiod", str(tmp_path / "istiod.yaml"), str(tmp_path)]
    program = pod.popen([sys.executable, *argv], stdout=subprocess.PIPE, cwd=ROOT)
    assert program.stdout is not None
    address, roots = program.stdout.readline().rstrip(), str(tmp_path / "root-cert.pem")
    yield (
        program,
        {
            "XDS_ADDRESS": address,
            "CA_ADDRESS": address,
            "XDS_ROOT_CA": roots,
            "CA_ROOT_CA": roots,
            "AUTH_TOKEN": TOKEN,
        },
    )
    program.kill()
    program.wait()
    program.stdout.close()


def test_control_plane_that_is_gone_leaves_the_certificate_that_it_signed(
    launch: Callable[..., Proxy],
    pod: Pod,
    istiod: tuple[subprocess.Popen[str], dict[str, str]],
    tmp_path: Path,
) -> None:
    program, settings = istiod
    proxy = launch(FAKE_CA=None, LOCAL_XDS_PATH=None, **settings)
    proxy.wait(lambda: "Available" in str(certs(pod)), "the certificate")
    (signed,) = certs(pod)
    roots = base64.b64decode(signed["rootCerts"][0]["pem"])
    assert roots == (tmp_path / "root-cert.pem").read_bytes()

    program.kill()

    proxy.wait(lambda: "terminations_total" in proxy.metrics(), "the end of discovery")
    assert certs(pod) == [signed]


def test_authority_that_is_not_there_is_shown_with_the_reason(
    launch: Callable[..., Proxy], pod: Pod, tmp_path: Path
) -> None:
    (tmp_path / "root.pem").write_bytes(Authority("mesh").pem)
    proxy = launch(FAKE_CA=None, CA_ADDRESS="127.0.0.1:1", CA_ROOT_CA=str(tmp_path / "root.pem"))

    proxy.wait(lambda: "signing gRPC error" in str(certs(pod)), "the reason")

    (shown,) = certs(pod)
    assert shown["state"].startswith("Unavailable: signing gRPC error (The service is currently")
    assert "cannot connect to https://127.0.0.1:1" in shown["state"]
    proxy.wait(lambda: f'{CART}"}} 1' in proxy.metrics(), "the count of failures")
