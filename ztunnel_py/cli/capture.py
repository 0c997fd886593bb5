# SPDX-License-Identifier: Apache-2.0
"""Options of all commands that redirect a pod: what is not captured, and what is besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--ingress` and `--virtual-interface`."""
    parser.add_argument(
        "--ingress", action="store_true", help="leave plain TCP from elsewhere to the application"
    )
    parser.add_argument(
        "--virtual-interface",
        action="append",
        default=[],
        metavar="NAME",
        help="what comes in by this interface goes out by the proxy; may be repeated",
    )
