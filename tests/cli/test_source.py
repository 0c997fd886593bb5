# SPDX-License-Identifier: Apache-2.0
"""What the commands make of servers that are something else, and of files that are no dumps."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import answering, speaking
from tests.cli.dumps import ZTUNNEL
from ztunnel_py.admin.http import Answer
from ztunnel_py.cli import admin, source

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.cli.conftest import Said

    Command = Callable[..., Awaitable[Said]]

READERS = [
    "workloads",
    "services",
    "policies",
    "certs",
    "connections",
    "tunnels",
    "log",
    "dump",
    "why a b",
]
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("argv", READERS)
async def test_no_server_is_told_with_where_to_look(argv: str, command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]

    said = await command(*argv.split(), "--admin", f"127.0.0.1:{port}")

    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"error: no proxy answers at 127.0.0.1:{port}: ")


@pytest.mark.parametrize("argv", READERS)
@pytest.mark.parametrize(
    "answer",
    [
        Answer(404),
        Answer(200, "<html>hello</html>"),
        Answer(200, "{}"),
        Answer(200, '[{"workload": 1}, 2]'),
        Answer(200, '{"workloads": 5}'),
        Answer(400, "what?"),
        Answer(500, "no state yet"),
        Answer(200, "[" * 100_000),
    ],
    ids=["404", "html", "object", "list", "wrong", "400", "500", "deep"],
)
async def test_another_http_server_is_told(argv: str, answer: Answer, command: Command) -> None:
    name = argv.split()[0]
    path = {"log": "/logging", "connections": "/connections", "tunnels": "/tunnels", "why": "/why"}

    async with answering(path.get(name, "/config_dump"), answer) as address:
        said = await command(*argv.split(), "--admin", address)

    assert (said.status, said.out) == (1, "")
    assert f"what answers at {address} is not such a proxy: " in said.err
    assert len(said.err.splitlines()) == 1


async def _no_http(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP \x1b]0;owned\x07\r\n")
    await reader.read()


async def _silent(reader: StreamReader, writer: StreamWriter) -> None:
    await reader.read()


async def _dripping(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(OK + b"X-Slow: ")
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _dripping_body(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(OK + b"Content-Length: 1000000\r\n\r\n")
    while not reader.at_eof():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _endless(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(OK + b"\r\n")
    while True:
        writer.write(bytes(65_536))
        await writer.drain()


async def _cut(reader: StreamReader, writer: StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK + b'Content-Length: 100\r\n\r\n{"workloads": []}')
    await writer.drain()


async def _headers(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(OK)
    for n in itertools.count():
        writer.write(f"X-{n}: {'y' * 1000}\r\n".encode())
        await writer.drain()


@pytest.mark.parametrize(
    "talk", [_no_http, _silent, _dripping, _dripping_body, _endless, _cut, _headers]
)
async def test_server_that_is_none_is_told_within_bounds(
    talk: Callable[..., Awaitable[None]], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "_SILENCE_S", 0.3)
    monkeypatch.setattr(admin, "_WHOLE_S", 0.6)
    monkeypatch.setattr(admin, "ANSWER_MAX", 10_000_000)

    async with speaking(talk) as address:
        async with asyncio.timeout(5):
            said = await command("workloads", "--admin", address)

    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"error: no proxy answers at {address}: ")
    assert said.err[:-1].isprintable()


@pytest.mark.parametrize("address", ["", ":", "localhost:http", "127.0.0.1:99999", "a b:1", "é:1"])
async def test_address_that_makes_no_sense_is_told(address: str, command: Command) -> None:
    said = await command("workloads", "--admin", address)

    assert said.status == 1
    assert said.err.startswith("error: no proxy answers at ")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"workload": []}', '{"workloads": 1}', "\0\0", "[" * 100_000],
    ids=["empty", "cut", "list", "null", "other", "wrong", "binary", "deep"],
)
@pytest.mark.parametrize("argv", ["workloads", "connections", "certs", "why a b"])
async def test_broken_dump_is_told(
    text: str, argv: str, command: Command, saved: Callable[[Any], str]
) -> None:
    path = saved(text)

    said = await command(*argv.split(), "--dump", path)

    assert (said.status, said.out) == (1, "")
    assert said.err == (
        f"error: {path} is no dump: expected the JSON object that /config_dump gives\n"
    )


async def test_dump_that_is_too_long_is_not_read(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(source, "ANSWER_MAX", 1 << 20)

    said = await command("workloads", "--dump", str(path))

    assert said.status == 1
    assert said.err == f"error: {path} is longer than 1048576 bytes: no dump is that long\n"


async def test_file_that_cannot_be_read_is_told(command: Command, tmp_path: Path) -> None:
    absent = await command("workloads", "--dump", str(tmp_path / "absent"))
    folder = await command("workloads", "--dump", str(tmp_path))

    assert (absent.status, folder.status) == (1, 1)
    assert absent.err == f"error: cannot read {tmp_path / 'absent'}: No such file or directory\n"
    assert folder.err == f"error: cannot read {tmp_path}: Is a directory\n"


async def test_dump_may_come_from_standard_in(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.BytesIO(json.dumps(ZTUNNEL).encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=text))

    said = await command("workloads", "--dump", "-")

    assert len(said.rows()) == 3


@pytest.mark.parametrize("argv", ["workloads", "why a b"])
async def test_proxy_and_dump_exclude_each_other(argv: str, command: Command) -> None:
    said = await command(*argv.split(), "--dump", "x", "--admin", "y:1")

    assert (said.status, said.out) == (2, "")
    assert "--admin and --dump exclude each other" in said.err
