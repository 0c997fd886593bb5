# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py redirect`: leads the traffic of a pod to the proxy, or ends that."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from typing import TYPE_CHECKING

from ztunnel_py import netns
from ztunnel_py.cli import capture
from ztunnel_py.redirection import apply, choice, scripts
from ztunnel_py.redirection.plan import PlanError, pod_plan
from ztunnel_py.redirection.programs import RedirectionError
from ztunnel_py.redirection.settings import has_ipv6, node_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ztunnel_py.netns import Netns
    from ztunnel_py.redirection.choice import Backend
    from ztunnel_py.redirection.plan import Options, Plan

DONE, FAILED, DIFFERS = 0, 1, 2
"""Exit statuses: also `equal`; nothing could be said or done; `verify` found differences."""
_VERBS = {
    "apply": "add what is missing, repair what differs",
    "verify": "compare the rules with what they should be",
    "remove": "take away all rules of ours, whatever programs made them",
    "print": "show the rules as a script",
}


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Runs `redirect` and returns the exit status: 2 if `verify` finds differences, 1 on errors."""
    arguments = _parser().parse_args(argv)
    try:
        plan = pod_plan(_options(arguments, environ))
        where = _namespace(arguments)
        backend = choice.choose_for(where, arguments.backend, environ, plan.families)
        return _ACTIONS[_verb(arguments)](plan, backend, where)
    except (PlanError, RedirectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ztunnel-py redirect",
        description="Leads the traffic of a pod to the proxy that listens in it.",
        epilog="exit status: 0 done, or equal; 2 `verify` found differences; 1 errors",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in _VERBS.items():
        _add_options(verbs.add_parser(verb, help=text, description=f"{text.capitalize()}."))
        if verb in ("apply", "remove"):
            verbs.choices[verb].add_argument(
                "--dry-run", action="store_true", help="show the script, change nothing"
            )
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    pod = parser.add_mutually_exclusive_group()
    pod.add_argument("--netns", metavar="PATH", help="the pod's network namespace (this one)")
    pod.add_argument("--pid", type=int, metavar="PID", help="the one of a process")
    parser.add_argument(
        "--backend",
        choices=choice.NAMES,
        default="auto",
        help=f"programs to use (auto: those in use, else iptables; {choice.FORCE} forces one kind)",
    )
    parser.add_argument("--dns", action="store_true", help="capture DNS as well")
    parser.add_argument(
        "--ipv6",
        action=argparse.BooleanOptionalAction,
        default=has_ipv6(),
        help="both families (if the kernel has IPv6)",
    )
    capture.add_options(parser)


def _options(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Options:
    return dataclasses.replace(
        node_options(environ),
        has_ipv6=arguments.ipv6,
        has_dns=arguments.dns,
        is_ingress=arguments.ingress,
        virtual_interfaces=tuple(arguments.virtual_interface),
    )


def _namespace(arguments: argparse.Namespace) -> Netns | None:
    """None: the one in which this runs; to stay there takes no capability."""
    path = arguments.netns or (arguments.pid and f"/proc/{arguments.pid}/ns/net")
    if not path:
        return None
    try:
        return netns.at(path)
    except OSError as error:
        raise RedirectionError(f"cannot open the namespace {path}: {error.strerror}") from error


def _verb(arguments: argparse.Namespace) -> str:
    verb: str = arguments.verb
    return f"{verb} --dry-run" if vars(arguments).get("dry_run") else verb


# --- what is done


def _apply(plan: Plan, backend: Backend, where: Netns | None) -> int:
    apply.apply(plan, backend, where)
    return DONE


def _verify(plan: Plan, backend: Backend, where: Netns | None) -> int:
    found = apply.verify(plan, backend, where)
    for one in found:
        print(one)
    return DIFFERS if found else DONE


def _remove(plan: Plan, backend: Backend, where: Netns | None) -> int:
    apply.remove(plan.families, where)
    return DONE


def _print(plan: Plan, backend: Backend, where: Netns | None) -> int:
    print(scripts.apply_script(plan, backend), end="")
    return DONE


def _print_removal(plan: Plan, backend: Backend, where: Netns | None) -> int:
    print(scripts.remove_script(plan, backend), end="")
    return DONE


_ACTIONS: dict[str, Callable[[Plan, Backend, Netns | None], int]] = {
    "apply": _apply,
    "verify": _verify,
    "remove": _remove,
    "print": _print,
    "apply --dry-run": _print,
    "remove --dry-run": _print_removal,
}
