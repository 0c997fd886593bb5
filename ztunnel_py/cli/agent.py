# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py agent`, `enroll`, `unenroll`, `enrolled`: pods of machines without istio-cni."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click

from ztunnel_py.agent import control as agent_control
from ztunnel_py.cli import capture
from ztunnel_py.cli.failure import Failure
from ztunnel_py.cli.table import Table, show, show_json
from ztunnel_py.errors import StartError
from ztunnel_py.redirection.settings import BACKENDS

RUN = Path("/var/run/ztunnel")
STATE = Path("/var/lib/ztunnel-py/enrolled.json")
CONTROL = RUN / "agent.sock"
_INSPECT = {
    "docker": ["inspect", "--format", "{{.State.Pid}}"],
    "podman": ["inspect", "--format", "{{.State.Pid}}"],
    "crictl": ["inspect", "--output", "go-template", "--template", "{{.info.pid}}"],
}
"""How container engines tell the process of a container."""


_control = click.option(
    "--control",
    type=click.Path(path_type=Path),
    default=CONTROL,
    show_default=True,
    metavar="PATH",
    help="the agent's socket",
)
_namespace = click.option(
    "--namespace", default="default", show_default=True, metavar="NAME", help="of the pod"
)
_json = click.option("--json", "as_json", is_flag=True, help="the answer as JSON")


@click.command()
@_control
@click.option(
    "--zds",
    type=click.Path(path_type=Path),
    default=RUN / "ztunnel.sock",
    show_default=True,
    envvar="INPOD_UDS",
    show_envvar=True,
    metavar="PATH",
    help="the socket for proxies",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=STATE,
    show_default=True,
    metavar="FILE",
    help="what is enrolled",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    help="programs that change the rules",
)
@click.option(
    "--probes",
    "has_probes",
    is_flag=True,
    help="let this machine's own programs reach its pods past their proxy, for health checks",
)
def agent(control: Path, zds: Path, state: Path, backend: str, *, has_probes: bool) -> None:
    """Tell a proxy in shared mode of pods.

    And redirect their traffic. What is enrolled stays so when the agent ends, and is taken up when
    it starts again.
    """
    import uvloop

    from ztunnel_py.agent.redirection import Probes, Rules
    from ztunnel_py.agent.run import Paths, run
    from ztunnel_py.redirection.plan import PlanError
    from ztunnel_py.redirection.programs import RedirectionError
    from ztunnel_py.telemetry.log import close, configure

    configure("info", is_json=False)
    try:
        rules = Rules(backend, os.environ)
        probes = Probes(backend, os.environ) if has_probes else None
        uvloop.run(run(Paths(zds, control, state), rules, probes))
    except (PlanError, RedirectionError, StartError) as error:
        raise Failure(str(error)) from error
    finally:
        close()


@click.command()
@_control
@click.argument("name")
@click.option("--netns", metavar="PATH", help="its network namespace")
@click.option("--pid", type=int, metavar="PID", help="a process of it")
@click.option("--container", metavar="ID", help="a container (docker, podman or crictl)")
@_namespace
@click.option(
    "--service-account", default="default", show_default=True, metavar="NAME", help="of the pod"
)
@click.option("--dns", is_flag=True, help="capture DNS, too; the proxy must have DNS capture on")
@capture.options
@_json
def enroll(
    control: Path,
    name: str,
    netns: str | None,
    pid: int | None,
    container: str | None,
    namespace: str,
    service_account: str,
    virtual_interfaces: tuple[str, ...],
    *,
    dns: bool,
    ingress: bool,
    as_json: bool,
) -> None:
    """Redirect a pod's traffic to the proxy.

    NAME is that of the pod, as the mesh knows it. Where it is say --netns, --pid or --container.
    """
    if [netns, pid, container].count(None) != 2:
        raise click.UsageError("expected one of --netns, --pid and --container")
    order = {
        "PodName": name,
        "PodNamespace": namespace,
        "ServiceAccount": service_account,
        "Netns": _netns(netns, pid, container),
        "Options": {
            "dns": dns,
            "ingress": ingress,
            "virtualInterfaces": list(virtual_interfaces),
        },
    }
    found = _ask(control, "cmdadd", order)
    if as_json:
        show_json(found)
    elif found["problem"]:
        click.echo(f"{found['uid']} is redirected, but not served yet: {found['problem']}")
        click.echo(
            "the proxy is told again every few seconds; until then its connections are refused"
        )
    else:
        click.echo(f"{found['uid']} is enrolled")


@click.command()
@_control
@click.argument("name")
@_namespace
@_json
def unenroll(control: Path, name: str, namespace: str, *, as_json: bool) -> None:
    """Give a pod its plain network back."""
    found = _ask(control, "unenroll", {"uid": f"{namespace}/{name}"})
    if as_json:
        show_json(found)
    else:
        click.echo(f"{found['uid']} is not enrolled any more; its captured connections have ended")


@click.command()
@_control
@_json
def enrolled(control: Path, *, as_json: bool) -> None:
    """List the pods that are enrolled."""
    found = _ask(control, "enrolled")
    if as_json:
        show_json(found)
        return
    rows = [
        [one["uid"], one["serviceAccount"], one["netns"], one["problem"] or "served"]
        for one in found["pods"]
    ]
    show(Table(["POD", "ACCOUNT", "NETNS", "STATE"], rows))
    if not found["proxies"]:
        click.echo("no proxy is connected: start one with PROXY_MODE=shared and the same INPOD_UDS")


def _ask(path: Path, what: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return agent_control.command(path, what, order)
    except (agent_control.AbsentError, agent_control.RefusedError) as error:
        raise Failure(str(error)) from error


def _netns(netns: str | None, pid: int | None, container: str | None) -> str:
    """A path of the namespace; the agent opens it."""
    if netns is not None:
        return str(Path(netns).absolute())
    pid = pid if container is None else _process(container)
    path = f"/proc/{pid}/ns/net"
    if not Path(path).exists():
        raise Failure(f"there is no process {pid}")
    return path


def _process(container: str) -> int:
    """The process of a container, as the first engine that knows it says."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", container) is None:
        raise Failure(f"{container!r} is no name of a container")
    engines = [name for name in _INSPECT if shutil.which(name)]
    for name in engines:
        done = subprocess.run(  # noqa: S603 - the name was checked
            [name, *_INSPECT[name], container], capture_output=True, text=True, check=False
        )
        pid = done.stdout.strip()
        if done.returncode == 0 and pid.isdecimal() and int(pid) > 0:
            return int(pid)
    asked = ", ".join(engines) or f"none of {', '.join(_INSPECT)} is installed"
    raise Failure(f"no running container {container} (asked: {asked}); --pid names a process")
