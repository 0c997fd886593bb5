# SPDX-License-Identifier: Apache-2.0
"""The systemd units, as systemd reads them."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support import units

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "/opt/ztunnel-py/bin/ztunnel-py"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name in units.NAMES:
        text = (units.FOLDER / name).read_text()
        assert PROGRAM in text
        (tmp_path / name).write_text(text.replace(PROGRAM, "/bin/true"))

    argv = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / n) for n in units.NAMES)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    said = [line for line in done.stderr.splitlines() if "ztunnel-py" in line]
    assert (done.returncode, said) == (0, [])


def test_proxy_has_the_capabilities_of_the_manifests_and_may_drain_as_long() -> None:
    objects = yaml.safe_load_all((units.FOLDER / "manifests/ztunnel.yaml").read_text())
    (pod,) = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "DaemonSet"]
    (container,) = pod["containers"]
    proxy = units.service("ztunnel-py.service")

    wanted = container["securityContext"]["capabilities"]["add"]
    assert sorted(units.capabilities("ztunnel-py.service")) == sorted(wanted)
    grace = pod["terminationGracePeriodSeconds"]
    assert f"TERMINATION_GRACE_PERIOD_SECONDS={grace}" in proxy["Environment"].split()
    assert proxy["TimeoutStopSec"] == f"{grace}s"
    assert proxy["ExecStart"].split()[1:] == container["args"]
