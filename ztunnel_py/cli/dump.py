# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py dump`: saves everything that a running proxy knows."""

from __future__ import annotations

import http.client
from pathlib import Path

import click

from ztunnel_py.cli.admin import fetch, foreign, parsed
from ztunnel_py.cli.failure import Failure
from ztunnel_py.cli.source import PATH, admin_option, is_dump


@click.command()
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True))
@admin_option
def dump(file: str, admin: str) -> None:
    """Save everything that a proxy knows.

    As JSON in FILE, or on standard out. Other commands read it with --dump FILE, and istioctl
    ztunnel-config with --file FILE.
    """
    status, body = fetch(admin, PATH)
    if status != http.client.OK or not is_dump(parsed(body)):
        raise foreign(admin, PATH, status)
    if file == "-":
        click.echo(body)
        return
    try:
        Path(file).write_bytes(body)
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror or error}") from error
