# SPDX-License-Identifier: Apache-2.0
"""Reads what the kernel counts for a running program, and describes this machine."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

from bench.libraries import libraries

_WHOLE_PROCESS_CLOCK = 2  # the scheduler's clock of a process, all its threads


class Usage(NamedTuple):
    """CPU seconds used by the client's and the server's proxy."""

    client: float
    server: float

    def __sub__(self, earlier: Usage) -> Usage:
        """What was used since `earlier`."""
        return Usage(self.client - earlier.client, self.server - earlier.server)

    @property
    def both(self) -> float:
        """The sum."""
        return self.client + self.server


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, exact to the nanosecond, ended threads included."""
    return time.clock_gettime((~pid << 3) | _WHOLE_PROCESS_CLOCK)


class Memory(NamedTuple):
    """Bytes of memory of a process."""

    resident: int
    """All of its pages."""
    share: int
    """Its own pages, and its part of those that others map too."""


def memory(pid: int) -> Memory:
    """The process's memory now."""
    return parse_memory(Path(f"/proc/{pid}/smaps_rollup").read_text())


def parse_memory(smaps: str) -> Memory:
    """The bytes in the `Rss` and `Pss` lines of a smaps file.

    Raises:
        KeyError: one is missing.
    """
    fields = {line.partition(":")[0]: line.split() for line in smaps.splitlines()}
    return Memory(int(fields["Rss"][1]) * 1024, int(fields["Pss"][1]) * 1024)


def parse_accepted(snmp: str) -> int:
    """Connections accepted so far, from the text of /proc/net/snmp."""
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("PassiveOpens")])


def machine() -> dict[str, str]:
    """What one must know of this machine to judge the figures."""
    return {
        "cpus": str(len(os.sched_getaffinity(0))),
        "cpu": _cpu_name(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "kernel": platform.release(),
        **libraries(),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
