# SPDX-License-Identifier: Apache-2.0
"""Where a running proxy has its certificate from, and how it shows it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process.conftest import ROOT
from tests.support.authority import Authority
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process.conftest import Proxy
    from ztunnel_py.cli.topology import Pod
    from ztunnel_py.identity.certificates import WorkloadCertificate

pytestmark = pytest.mark.netns

CART = Identity("cluster.local", "shop", "cart")


def certs(pod: Pod, *options: str) -> list[dict[str, str]]:
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
