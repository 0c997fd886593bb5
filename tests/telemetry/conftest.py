# SPDX-License-Identifier: Apache-2.0
"""A log whose lines a test can read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class LogFile:
    """The process's log, redirected into a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def start(self, filter_text: str = "info", *, is_json: bool = False) -> None:
        """Sends the log here from now on."""
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        log.configure(filter_text, is_json=is_json, fd=self._fd)

    def lines(self) -> list[str]:
        """What was logged; ends the redirection."""
        self.stop()
        return self._path.read_text(encoding="utf-8").splitlines()

    def stop(self) -> None:
        """Ends the redirection; may be called twice."""
        log.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[LogFile]:
    """The process's log, redirected once `start` is called."""
    file = LogFile(tmp_path / "log")
    yield file
    file.stop()
