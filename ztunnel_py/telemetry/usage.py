# SPDX-License-Identifier: Apache-2.0
"""What this process uses: descriptors, processor time, memory."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.telemetry import catalogue
from ztunnel_py.telemetry.exposition import Family, Sample
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

_FD_DIRECTORY = "/dev/fd"
_log = logger("ztunnel::metrics")


class Usage(NamedTuple):
    """As of one moment."""

    open_fds: int
    max_fds: int
    cpu_s: float
    """Of all threads, also those that have ended."""
    resident_bytes: int
    started: float
    """Unix seconds."""


def read() -> Usage:
    """As of now. Takes the kernel milliseconds where many descriptors are open."""
    try:
        # The listing itself holds a descriptor.
        opened = len(os.listdir(_FD_DIRECTORY)) - 1
    except OSError as error:
        _log.error(f"cannot list {_FD_DIRECTORY}: {error}")
        opened = 0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Usage(
        opened,
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        time.process_time(),
        pages * resource.getpagesize(),
        _STARTED,
    )


def families(usage: Usage) -> Iterator[Family]:
    """Their metrics."""
    for metric, value in (
        (catalogue.OPEN_FDS, usage.open_fds),
        (catalogue.MAX_FDS, usage.max_fds),
        (catalogue.CPU, round(usage.cpu_s, 3)),
        (catalogue.MEMORY, usage.resident_bytes),
        (catalogue.STARTED, round(usage.started, 2)),
    ):
        yield Family(metric, [Sample("", value)])


def _started() -> float:
    """When the process began, Unix seconds. Source: proc(5), field 22 of stat."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot_s = int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s


_STARTED = _started()
