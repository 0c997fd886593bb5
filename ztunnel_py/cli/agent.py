# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py agent`, `enroll`, `unenroll`, `enrolled`: pods of machines without istio-cni."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py.agent import control
from ztunnel_py.cli import capture
from ztunnel_py.cli.live import table
from ztunnel_py.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN = Path("/var/run/ztunnel")
STATE = Path("/var/lib/ztunnel-py/enrolled.json")
CONTROL = RUN / "agent.sock"
_INSPECT = {
    "docker": ["inspect", "--format", "{{.State.Pid}}"],
    "podman": ["inspect", "--format", "{{.State.Pid}}"],
    "crictl": ["inspect", "--output", "go-template", "--template", "{{.info.pid}}"],
}
"""How container engines tell the process of a container."""


class UsageError(Exception):
    """What was asked for is not there; the text is for the user."""


def main(command: str, argv: Sequence[str]) -> int:
    """Runs a command; the exit status is 1 where it could not be done."""
    try:
        match command:
            case "agent":
                return _agent(argv)
            case "enroll":
                return _enroll(argv)
            case "unenroll":
                return _unenroll(argv)
            case _:
                return _enrolled(argv)
    except (UsageError, control.AbsentError, control.RefusedError, StartError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _agent(argv: Sequence[str]) -> int:
    from ztunnel_py.redirection import choice  # orders to the agent need none of it

    parser = _parser(
        "agent",
        "Tells a proxy in shared mode of pods, and redirects their traffic. What is enrolled stays "
        "so when the agent ends, and is taken up when it starts again.",
    )
    uds = Path(os.environ.get("INPOD_UDS", RUN / "ztunnel.sock"))
    parser.add_argument("--zds", type=Path, default=uds, help=f"for proxies (INPOD_UDS, {uds})")
    parser.add_argument("--state", type=Path, default=STATE, help=f"what is enrolled ({STATE})")
    parser.add_argument(
        "--backend", choices=choice.NAMES, default="auto", help="programs that change the rules"
    )
    parser.add_argument(
        "--probes",
        action="store_true",
        help="let this machine's own programs reach its pods past their proxy, for health checks",
    )
    options = parser.parse_args(argv)
    import uvloop

    from ztunnel_py.agent.redirection import Probes, Rules
    from ztunnel_py.agent.run import Paths, run
    from ztunnel_py.redirection.plan import PlanError
    from ztunnel_py.redirection.programs import RedirectionError
    from ztunnel_py.telemetry.log import close, configure

    configure("info", is_json=False)
    try:
        rules = Rules(options.backend, os.environ)
        probes = Probes(options.backend, os.environ) if options.probes else None
        uvloop.run(run(Paths(options.zds, options.control, options.state), rules, probes))
    except (PlanError, RedirectionError) as error:
        raise StartError(str(error)) from error
    finally:
        close()
    return 0


def _enroll(argv: Sequence[str]) -> int:
    parser = _parser("enroll", "Redirects a pod's traffic to the proxy of this machine.")
    parser.add_argument("name", metavar="NAME", help="of the pod, as the mesh knows it")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--netns", metavar="PATH", help="its network namespace")
    place.add_argument("--pid", type=int, metavar="PID", help="a process of it")
    place.add_argument("--container", metavar="ID", help="a container (docker, podman or crictl)")
    parser.add_argument("--namespace", default="default", help="of the pod (default)")
    parser.add_argument(
        "--service-account", default="default", metavar="NAME", help="of the pod (default)"
    )
    parser.add_argument(
        "--dns", action="store_true", help="capture DNS, too; the proxy must have DNS capture on"
    )
    capture.add_options(parser)
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    options = parser.parse_args(argv)
    order = {
        "PodName": options.name,
        "PodNamespace": options.namespace,
        "ServiceAccount": options.service_account,
        "Netns": _netns(options),
        "Options": {
            "dns": options.dns,
            "ingress": options.ingress,
            "virtualInterfaces": options.virtual_interface,
        },
    }
    found = control.command(options.control, "cmdadd", order)
    if options.json:
        print(json.dumps(found))
    elif found["problem"]:
        print(f"{found['uid']} is redirected, but not served yet: {found['problem']}")
        print("the proxy is told again every few seconds; until then its connections are refused")
    else:
        print(f"{found['uid']} is enrolled")
    return 0


def _unenroll(argv: Sequence[str]) -> int:
    parser = _parser("unenroll", "Gives a pod its plain network back.")
    parser.add_argument("name", metavar="NAME", help="of the pod")
    parser.add_argument("--namespace", default="default", help="of the pod (default)")
    options = parser.parse_args(argv)
    uid = f"{options.namespace}/{options.name}"
    found = control.command(options.control, "unenroll", {"uid": uid})
    print(f"{found['uid']} is not enrolled any more; its captured connections have ended")
    return 0


def _enrolled(argv: Sequence[str]) -> int:
    parser = _parser("enrolled", "Lists the pods that are enrolled.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    found = control.command(options.control, "enrolled")
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    rows = [
        [one["uid"], one["serviceAccount"], one["netns"], one["problem"] or "served"]
        for one in found["pods"]
    ]
    print(table(["POD", "ACCOUNT", "NETNS", "STATE"], rows))
    if not found["proxies"]:
        print("no proxy is connected: start one with PROXY_MODE=shared and the same INPOD_UDS")
    return 0


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"ztunnel-py {name}", description=text)
    parser.add_argument(
        "--control", type=Path, default=CONTROL, metavar="PATH", help=f"the agent ({CONTROL})"
    )
    return parser


def _netns(options: argparse.Namespace) -> str:
    """A path of the namespace; the agent opens it."""
    if options.netns is not None:
        return str(Path(options.netns).absolute())
    pid = options.pid if options.container is None else _process(options.container)
    path = f"/proc/{pid}/ns/net"
    if not Path(path).exists():
        raise UsageError(f"there is no process {pid}")
    return path


def _process(container: str) -> int:
    """The process of a container, as the first engine that knows it says."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", container) is None:
        raise UsageError(f"{container!r} is no name of a container")
    engines = [name for name in _INSPECT if shutil.which(name)]
    for name in engines:
        done = subprocess.run(  # noqa: S603 - the name was checked
            [name, *_INSPECT[name], container], capture_output=True, text=True, check=False
        )
        pid = done.stdout.strip()
        if done.returncode == 0 and pid.isdecimal() and int(pid) > 0:
            return int(pid)
    asked = ", ".join(engines) or f"none of {', '.join(_INSPECT)} is installed"
    raise UsageError(f"no running container {container} (asked: {asked}); --pid names a process")
