# SPDX-License-Identifier: Apache-2.0
"""Runs the programs that change rules: with text to read, within bounds, in a pod's namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from ztunnel_py.netns import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ztunnel_py.netns import Netns

TIMEOUT_S = 40.0
"""More than the 30 s for which a program waits until others have finished."""
MAX_OUTPUT = 16 << 20
"""Bytes that are read; a pod may fill its tables with rules of its own."""
PACKAGES = {"nft": "nftables"}
_SYSTEM = ("/usr/sbin", "/sbin")
_ERROR_TEXT = 2000

T = TypeVar("T")


class RedirectionError(Exception):
    """Rules could not be read or changed; the text is for the operator."""


def run(argv: Sequence[str], text: str = "") -> str:
    """Runs a program in the namespace of the calling thread; returns what it prints.

    Raises:
        RedirectionError: it is missing, failed, took longer than `TIMEOUT_S` or printed more than
            `MAX_OUTPUT`; with its own words.
    """
    path = find(argv[0])
    if path is None:
        raise RedirectionError(
            f"the program '{argv[0]}' is missing; install the package {package(argv[0])}"
        )
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
        stdin.write(text.encode())
        stdin.seek(0)
        with subprocess.Popen(
            [path, *argv[1:]], stdin=stdin, stdout=subprocess.PIPE, stderr=stderr
        ) as program:
            assert program.stdout is not None
            too_late = threading.Timer(TIMEOUT_S, program.kill)
            too_late.start()
            output = program.stdout.read(MAX_OUTPUT + 1)
            if len(output) > MAX_OUTPUT:
                program.kill()
            program.wait()
            too_late.cancel()
            too_late.join()  # it is in the pod's namespace as well
        stderr.seek(0)
        words = stderr.read(_ERROR_TEXT).decode(errors="replace").strip()
    if len(output) > MAX_OUTPUT:
        raise RedirectionError(f"{argv[0]} prints more than {MAX_OUTPUT >> 20} MiB of rules")
    if program.returncode != 0:
        raise RedirectionError(_why(argv[0], program.returncode, words))
    return output.decode(errors="replace")


def find(name: str) -> str | None:
    """Where a program is; also in the folders of the system that are not in everybody's path."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join((*folders, *_SYSTEM)))


def package(name: str) -> str:
    """The package that brings a program."""
    return PACKAGES.get(name, "iptables")


def call_inside(where: Netns | None, function: Callable[[], T]) -> T:
    """Calls a function in a namespace; None: in the one of the caller.

    It runs in a thread that ends with it, so nothing else is ever done in that namespace. Programs
    that it starts are in the namespace too. The calling thread waits: not one for an event loop.

    Raises:
        RedirectionError: the namespace cannot be entered.
        Exception: what the function raises.
    """

    def visit() -> T:
        if where is None:
            return function()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(inside(where))
            except OSError as error:
                hint = "; CAP_SYS_ADMIN is needed" if error.errno == errno.EPERM else ""
                raise RedirectionError(f"{error.strerror}{hint}") from error
            return function()

    with ThreadPoolExecutor(1, "redirection") as thread:
        return thread.submit(visit).result()


def _why(name: str, status: int, words: str) -> str:
    if status < 0:
        words = f"ended by signal {-status} {words}".rstrip()
    why = f"{name} failed with {status}: {words or 'without a word'}"
    if "ermission denied" in words or "not permitted" in words:
        why += "; CAP_NET_ADMIN and CAP_NET_RAW are needed in the pod's user namespace"
    return why
