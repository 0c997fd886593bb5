# SPDX-License-Identifier: Apache-2.0
"""What our systemd units say, and the rights that they leave to a service."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "deploy"
NAMES = ("ztunnel-py.service", "ztunnel-py-agent.service")


def service(name: str) -> dict[str, str]:
    """The section [Service] of a unit."""
    parser = ConfigParser(interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keys as they are written
    parser.read_string((FOLDER / name).read_text())
    return dict(parser["Service"])


def capabilities(name: str) -> list[str]:
    """Those that the service keeps, without CAP_."""
    listed = service(name)["CapabilityBoundingSet"].split()
    return [one.removeprefix("CAP_") for one in listed]


def rights(name: str) -> list[str]:
    """The program in front of another one that leaves it what the unit leaves it."""
    assert service(name)["NoNewPrivileges"] == "yes"
    bounding = ",".join(["-all", *(f"+{one.lower()}" for one in capabilities(name))])
    return ["setpriv", "--no-new-privs", f"--bounding-set={bounding}"]
