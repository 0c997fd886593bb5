# SPDX-License-Identifier: Apache-2.0
"""How a command fails: a line for the operator, and exit status 1."""

from __future__ import annotations

from typing import IO, Any

import click


class Failure(click.ClickException):
    """A command cannot do what it was asked for; the message says what is wrong."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints it to standard error."""
        click.echo(f"error: {self.message}", file=file, err=file is None)
