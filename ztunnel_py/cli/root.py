# SPDX-License-Identifier: Apache-2.0
"""The command `ztunnel-py` and the modules of its parts, each loaded when it is used.

Exit status: 0 done; 1 not done, or no such command; 2 bad options, or as the command's help says.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

import click

from ztunnel_py import __version__
from ztunnel_py.cli.table import show_json
from ztunnel_py.version import BuildInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "ztunnel-py"
COMPLETE = "_ZTUNNEL_PY_COMPLETE"
"""The variable by which a shell asks for completions."""
_INTERRUPTED = 130
_MODULES = {
    "proxy": "root",
    "why": "why",
    "connections": "live",
    "tunnels": "live",
    "workloads": "mesh",
    "services": "mesh",
    "policies": "mesh",
    "certs": "certs",
    "log": "log",
    "dump": "dump",
    "agent": "agent",
    "enroll": "agent",
    "unenroll": "agent",
    "enrolled": "agent",
    "redirect": "redirect",
    "demo": "demo",
    "completion": "root",
    "version": "root",
    "help": "root",
}
"""Where the commands are, in the order of the help."""


class _Commands(click.Group):
    """Loads a command when it is asked for; an unknown one is status 1, as with ztunnel."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All, in order."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        module = _MODULES.get(cmd_name)
        if module is None:
            return None
        name = "help_" if cmd_name == "help" else cmd_name
        command = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with."""
        if args[0] not in _MODULES and not args[0].startswith("-"):
            click.echo(f"unknown command: {args[0]}", err=True)
            click.echo(ctx.get_help())
            ctx.exit(1)
        return super().resolve_command(ctx, args)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit status."""
    try:
        status = main.main(list(arguments), prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    return status if isinstance(status, int) else 0


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{NAME} COMMAND --help says more. Without a command the proxy runs.",
)
def main() -> None:
    """Node proxy of an Istio ambient mesh, and what goes with it."""


main.help = f"{NAME} {__version__}: node proxy of an Istio ambient mesh, and what goes with it."


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("ignored", nargs=-1, type=click.UNPROCESSED, metavar="[ztunnel]")
def proxy(ignored: tuple[str, ...]) -> int:
    """Run the proxy; settings come from the environment."""
    from ztunnel_py.start import start

    return start()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def version(*, as_json: bool) -> None:
    """Print the build."""
    build = BuildInfo.running(os.environ.get("ISTIO_META_ISTIO_VERSION", "unknown"))
    if as_json:
        show_json(build.dump())
    else:
        click.echo(str(build))


@click.command("help")
@click.argument("command", nargs=-1)
def help_(command: tuple[str, ...]) -> int:
    """Print this, or the help of a command."""
    return run([*command, "--help"])


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what completes this command in a shell.

    In ~/.bashrc or ~/.zshrc: eval "$(ztunnel-py completion bash)"; for fish: ztunnel-py completion
    fish > ~/.config/fish/completions/ztunnel-py.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(found(main, {}, NAME, COMPLETE).source())
