# SPDX-License-Identifier: Apache-2.0
"""Runs programs that are not ours; one that is missing fails the test, with what to install."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.identity.certificates import WorkloadCertificate

LOOPBACK = "127.0.0.1"
RUN_S = 30.0
START_S = 20.0
_LISTEN = "0A"


class Output(NamedTuple):
    """What a program said until its end."""

    status: int
    text: str
    """Both streams, mixed as they came."""


class Programs:
    """Those of one test."""

    def __init__(self) -> None:
        self._running: list[asyncio.subprocess.Process] = []

    async def run(self, argv: Sequence[str]) -> Output:
        """Runs a program to its end."""
        program = await self._start(argv, asyncio.subprocess.PIPE)
        async with asyncio.timeout(RUN_S):
            text, _ = await program.communicate()
        assert program.returncode is not None
        return Output(program.returncode, text.decode(errors="replace"))

    async def serve(self, argv: Sequence[str], port: int, log: Path) -> None:
        """Starts a program and returns when it listens on that port of loopback."""
        with log.open("wb") as file:
            program = await self._start(argv, file.fileno())
        await until(
            lambda: is_listening(port) or program.returncode is not None,
            f"{argv[0]} to listen on {port}",
            START_S,
        )
        assert program.returncode is None, f"{argv[0]} ended; see {log}"

    async def stop(self) -> None:
        """Ends those that run."""
        for program in self._running:
            if program.returncode is None:
                program.kill()
            await program.wait()

    async def _start(self, argv: Sequence[str], output: int) -> asyncio.subprocess.Process:
        program = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._running.append(program)
        return program


def needed(name: str, package: str) -> str:
    """The path of a program; the test fails without it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing; run tools/packages.sh, or install {package}")
    return path


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


def is_listening(port: int) -> bool:
    """Somebody listens on an IPv4 port of this machine."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listeners = (fields[1] for fields in map(str.split, lines) if fields[3] == _LISTEN)
    return any(local.endswith(f":{port:04X}") for local in listeners)


def certificate_files(folder: Path, certificate: WorkloadCertificate) -> tuple[str, str, str]:
    """Paths of the chain, of the key and of the roots."""
    chain, key, roots = (folder / f"{name}.pem" for name in ("chain", "key", "roots"))
    chain.write_bytes(certificate.chain_pem)
    key.write_bytes(certificate.key_pem)
    roots.write_bytes(certificate.roots_pem)
    return str(chain), str(key), str(roots)
