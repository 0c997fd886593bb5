# SPDX-License-Identifier: Apache-2.0
"""Options of all commands that redirect a pod: what is not captured, and what is besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

C = TypeVar("C", bound="Callable[..., Any]")


def options(command: C) -> C:
    """Adds `--ingress` and `--virtual-interface`."""
    interfaces = click.option(
        "--virtual-interface",
        "virtual_interfaces",
        multiple=True,
        metavar="NAME",
        help="what comes in by this interface goes out by the proxy; may be repeated",
    )
    ingress = click.option(
        "--ingress", is_flag=True, help="leave plain TCP from elsewhere to the application"
    )
    return ingress(interfaces(command))
