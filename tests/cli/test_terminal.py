# SPDX-License-Identifier: Apache-2.0
"""What a person sees: on a terminal tables fit, have colours, and may stay up to date."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.admin.test_live import connection
from tests.cli.conftest import answering
from tests.cli.dumps import ZTUNNEL, workload
from ztunnel_py.admin.http import Answer, HttpServer
from ztunnel_py.admin.json_text import to_json
from ztunnel_py.admin.live import dump_connections
from ztunnel_py.cli.table import Table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.cli.conftest import Said

    Command = Callable[..., Awaitable[Said]]

ROOT = Path(__file__).parents[2]
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A command on a terminal of so many columns."""

    def __init__(self, columns: int, *argv: str, **environ: str) -> None:
        self._main, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.program = subprocess.Popen(
            [sys.executable, "-m", "ztunnel_py", *argv],
            cwd=ROOT,
            stdin=end,
            stdout=end,
            stderr=end,
            env={"PATH": os.environ["PATH"], "TERM": "xterm-256color", **environ},
        )
        os.close(end)
        self.seen = ""

    def see(self, text: str = "", deadline_s: float = 15) -> str:
        """What has appeared, once `text` is part of it, or at the end of the program."""
        until = time.monotonic() + deadline_s
        while not text or text not in self.seen:
            left = until - time.monotonic()
            assert left > 0, f"waited for {text!r}: {self.seen}"
            if select.select([self._main], [], [], left)[0]:
                try:
                    self.seen += os.read(self._main, 65_536).decode()
                except OSError:  # its end, on Linux
                    assert not text, f"waited for {text!r}: {self.seen}"
                    return self.seen
        return self.seen

    def end(self) -> None:
        """Ends what is left."""
        if self.program.poll() is None:
            self.program.kill()
        self.program.wait()
        os.close(self._main)


@contextlib.contextmanager
def terminal(columns: int, *argv: str, **environ: str) -> Iterator[Terminal]:
    found = Terminal(columns, *argv, **environ)
    try:
        yield found
    finally:
        found.end()


def test_table_fits_the_terminal_and_loses_nothing(saved: Callable[[Any], str]) -> None:
    name = "".join(f"-part-{n}" for n in range(30))
    path = saved(ZTUNNEL | {"policies": [{"namespace": "shop", "name": name, "action": "Allow"}]})

    with terminal(80, "policies", "--dump", path) as shown:
        head, *lines = ESCAPE.sub("", shown.see()).splitlines()

    column = slice(head.index(" NAME ") + 1, head.index("ACTION"))
    assert max(map(len, [head, *lines])) <= 80
    assert "".join(line[column].strip() for line in lines) == name


def test_colours_are_for_terminals_that_want_them(saved: Callable[[Any], str]) -> None:
    path = saved(ZTUNNEL)

    with terminal(100, "workloads", "--dump", path) as coloured:
        assert COLOUR.search(coloured.see())
    with terminal(100, "workloads", "--dump", path, NO_COLOR="1") as plain:
        assert not COLOUR.search(plain.see())


async def test_elsewhere_a_row_is_a_line_without_colours(
    command: Command, saved: Callable[[Any], str]
) -> None:
    long = workload("shop", "x" * 300, "10.0.0.1", "n")

    said = await command("workloads", "--dump", saved(ZTUNNEL | {"workloads": [long]}))

    assert "\x1b" not in said.out
    assert said.rows()[0]["NAME"] == "x" * 300


async def test_text_from_elsewhere_cannot_steer_the_terminal(
    command: Command, saved: Callable[[Any], str]
) -> None:
    hostile = workload("shop", "a\x1b]0;owned\x07\n[red]b[/red]", "10.0.0.1", "n")
    path = saved(ZTUNNEL | {"workloads": [hostile]})

    said = await command("workloads", "--dump", path)
    with terminal(150, "workloads", "--dump", path) as shown:
        seen = ESCAPE.sub("", shown.see())

    escaped = r"a\x1b]0;owned\x07\n[red]b[/red]"
    assert escaped in said.out
    assert escaped in seen
    assert "\x1b" not in seen


async def test_watched_connections_stay_up_to_date_until_interrupted() -> None:
    views = [connection(id=1)]
    pages = {"/connections": lambda _: Answer(200, to_json(dump_connections(views)))}
    server = HttpServer("test", (("127.0.0.1", 0),), pages)
    await server.open()
    address = "{}:{}".format(*server.address)
    argv = ("connections", "--watch", "--interval", "0.1", "--admin", address)

    with terminal(250, *argv) as shown:
        await asyncio.to_thread(shown.see, "0000000000000001")
        views[:] = [connection(id=2)]
        await asyncio.to_thread(shown.see, "0000000000000002")
        shown.program.send_signal(signal.SIGINT)
        await asyncio.to_thread(shown.see)
        status = await asyncio.to_thread(shown.program.wait, 10)
    await server.close()

    assert status == 130
    assert "\x1b[?1049l" in shown.seen  # the screen is as before
    assert "Traceback" not in shown.seen


async def test_watching_ends_when_the_proxy_does(command: Command) -> None:
    answers = [Answer(200, to_json(dump_connections([connection()]))), Answer(500, "no")]
    pages = {"/connections": lambda _: answers.pop(0)}
    server = HttpServer("test", (("127.0.0.1", 0),), pages)
    await server.open()

    said = await command(
        *("connections", "-w", "--interval", "0.1", "--admin"), "{}:{}".format(*server.address)
    )
    await server.close()

    assert said.status == 1
    assert said.out.count("000000000000002a") == 1
    assert "/connections gave 500" in said.err


@pytest.mark.parametrize("argv", [("--json",), ("--dump", "x")])
async def test_only_a_table_of_a_proxy_can_be_watched(
    argv: tuple[str, ...], command: Command
) -> None:
    said = await command("connections", "--watch", *argv)

    assert said.status == 2
    assert "--watch shows a table of a running proxy" in said.err


async def test_connections_of_ztunnel_are_those_of_its_dump(
    command: Command, saved: Callable[[Any], str]
) -> None:
    async with answering("/config_dump", Answer(200, json.dumps(ZTUNNEL))) as address:
        asked = await command("connections", "--admin", address)
    read = await command("connections", "--dump", saved(ZTUNNEL))

    assert asked.out == read.out
    assert read.rows() == [
        {
            "WORKLOAD": "shop/cart-0",
            "DIRECTION": "inbound",
            "SOURCE": "10.1.1.7:39000",
            "DESTINATION": "- -> 10.1.0.5:8080",
            "PROTOCOL": "TCP",
        },
        {
            "WORKLOAD": "shop/cart-0",
            "DIRECTION": "outbound",
            "SOURCE": "10.1.0.5:40112",
            "DESTINATION": "10.96.0.9:80 -> 10.1.1.7:15008",
            "PROTOCOL": "HBONE",
        },
    ]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert str(Table(["A", "B"], [["long", ""], ["", "x"]])) == "A     B\nlong  -\n-     x"


def test_a_table_of_nothing_is_its_head() -> None:
    assert str(Table(["A", "B"], [])) == "A  B"
