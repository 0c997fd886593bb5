# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py redirect`: leads the traffic of a pod to the proxy, or ends that."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ztunnel_py import netns as namespaces
from ztunnel_py.cli import capture
from ztunnel_py.cli.failure import Failure
from ztunnel_py.cli.table import show_json
from ztunnel_py.redirection import apply, choice, scripts
from ztunnel_py.redirection.plan import PlanError, pod_plan
from ztunnel_py.redirection.programs import RedirectionError
from ztunnel_py.redirection.settings import BACKENDS, has_ipv6, node_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ztunnel_py.netns import Netns
    from ztunnel_py.redirection.choice import Backend
    from ztunnel_py.redirection.plan import Plan

DONE, FAILED, DIFFERS = 0, 1, 2
"""Exit statuses: also `equal`; nothing could be said or done; `verify` found differences."""
C = TypeVar("C", bound="Callable[..., Any]")


@click.group()
def redirect() -> None:
    """Lead a pod's traffic to the proxy in it.

    Exit status: 0 done, or equal; 2 `verify` found differences; 1 errors.
    """


def _options(command: C) -> C:
    """Adds what all verbs take."""
    for option in (
        click.option("--netns", metavar="PATH", help="the pod's network namespace (this one)"),
        click.option("--pid", type=int, metavar="PID", help="the one of a process"),
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="auto",
            help="programs to use (auto: those in use, else iptables; "
            f"{choice.FORCE} forces one kind)",
        ),
        click.option("--dns", is_flag=True, help="capture DNS as well"),
        click.option(
            "--ipv6/--no-ipv6", default=has_ipv6(), help="both families (if the kernel has IPv6)"
        ),
        capture.options,
    ):
        command = option(command)
    return command


_dry_run = click.option("--dry-run", is_flag=True, help="show the script, change nothing")
_json = click.option("--json", "as_json", is_flag=True, help="as JSON")


@redirect.command("apply")
@_options
@_dry_run
def apply_(*, dry_run: bool, **options: Any) -> int:  # noqa: ANN401 - of click
    """Add what is missing, repair what differs."""
    with _prepared(**options) as (plan, backend, where):
        if dry_run:
            print(scripts.apply_script(plan, backend), end="")
        else:
            apply.apply(plan, backend, where)
    return DONE


@redirect.command()
@_options
@_json
def verify(*, as_json: bool, **options: Any) -> int:  # noqa: ANN401 - of click
    """Compare the rules with what they should be."""
    with _prepared(**options) as (plan, backend, where):
        found = apply.verify(plan, backend, where)
    if as_json:
        show_json([dataclasses.asdict(one) for one in found])
    else:
        for one in found:
            print(one)
    return DIFFERS if found else DONE


@redirect.command()
@_options
@_dry_run
def remove(*, dry_run: bool, **options: Any) -> int:  # noqa: ANN401 - of click
    """Take away all rules of ours, whatever programs made them."""
    with _prepared(**options) as (plan, backend, where):
        if dry_run:
            print(scripts.remove_script(plan, backend), end="")
        else:
            apply.remove(plan.families, where)
    return DONE


@redirect.command("print")
@_options
def print_(**options: Any) -> int:  # noqa: ANN401 - of click
    """Show the rules as a script."""
    with _prepared(**options) as (plan, backend, _):
        print(scripts.apply_script(plan, backend), end="")
    return DONE


@contextlib.contextmanager
def _prepared(
    *,
    netns: str | None,
    pid: int | None,
    backend: str,
    dns: bool,
    ipv6: bool,
    ingress: bool,
    virtual_interfaces: tuple[str, ...],
) -> Iterator[tuple[Plan, Backend, Netns | None]]:
    """What the options ask for; what goes wrong within is told to the user."""
    if netns and pid is not None:
        raise click.UsageError("--netns and --pid exclude each other")
    try:
        asked = dataclasses.replace(
            node_options(os.environ),
            has_ipv6=ipv6,
            has_dns=dns,
            is_ingress=ingress,
            virtual_interfaces=virtual_interfaces,
        )
        plan = pod_plan(asked)
        where = _namespace(netns or (f"/proc/{pid}/ns/net" if pid is not None else ""))
        yield plan, choice.choose_for(where, backend, os.environ, plan.families), where
    except (PlanError, RedirectionError) as error:
        raise Failure(str(error)) from error


def _namespace(path: str) -> Netns | None:
    """None: the one in which this runs; to stay there takes no capability."""
    if not path:
        return None
    try:
        return namespaces.at(path)
    except OSError as error:
        raise RedirectionError(f"cannot open the namespace {path}: {error.strerror}") from error
