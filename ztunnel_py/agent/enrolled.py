# SPDX-License-Identifier: Apache-2.0
"""A pod that is enrolled, and the file that remembers all of them.

The file is replaced in one step and read once, when the agent starts. What it says of a namespace
is checked: one that is gone, or that has become another, is not served in its place.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ztunnel_py import netns as namespaces
from ztunnel_py.errors import StartError
from ztunnel_py.state.workload import WorkloadInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ztunnel_py.netns import Netns

VERSION = 1


class NetnsError(Exception):
    """There is no such network namespace, or not that one any more; the text says which."""


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace: where it was found, and which one it was then."""

    path: str
    device: int
    inode: int

    @classmethod
    def of(cls, path: str) -> tuple[Place, Netns]:
        """The namespace that `path` stands for now.

        Raises:
            NetnsError: it stands for none.
        """
        try:
            netns = namespaces.at(path)
        except OSError as error:
            raise NetnsError(f"{path}: {error.strerror}") from error
        if not netns.is_network():
            raise NetnsError(f"{path} is not a network namespace")
        found = os.fstat(netns.fileno())
        return cls(path, found.st_dev, found.st_ino), netns

    def open(self) -> Netns:
        """The namespace, if it is still the same.

        Raises:
            NetnsError: it is not.
        """
        found, netns = Place.of(self.path)
        if found != self:
            raise NetnsError(f"{self.path} is another namespace than the one that was enrolled")
        return netns


@dataclass(slots=True)
class Enrolled:
    """One pod."""

    name: str
    namespace: str
    service_account: str
    place: Place
    options: dict[str, Any] = field(default_factory=dict)
    """Of its redirection."""
    problem: str = ""
    """Why it is not served; empty: it is."""

    @property
    def uid(self) -> str:
        """How proxies call it."""
        return f"{self.namespace}/{self.name}"

    @property
    def info(self) -> WorkloadInfo:
        """Who it is."""
        return WorkloadInfo(self.name, self.namespace, self.service_account)


class StateFile:
    """Remembers who is enrolled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Enrolled]:
        """Everybody; nobody if there is no file.

        Raises:
            StartError: it cannot be read; nothing is guessed, since rules of pods depend on it.
        """
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StartError(f"{self._path}: {error.strerror}") from error
        try:
            return list(_parse(json.loads(text)))
        except (ValueError, KeyError, TypeError) as error:
            raise StartError(f"{self._path} is not a list of enrolled pods: {error}") from error

    def write(self, enrolled: Iterable[Enrolled]) -> None:
        """Replaces the file.

        Raises:
            OSError: it cannot be written; then it is as before.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        pods = [_dump(one) for one in enrolled]
        temporary = self._path.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump({"version": VERSION, "pods": pods}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _dump(one: Enrolled) -> dict[str, Any]:
    found = asdict(one)
    del found["problem"]
    return found


def _parse(tree: dict[str, Any]) -> Iterator[Enrolled]:
    if tree["version"] != VERSION:
        raise ValueError(f"version {tree['version']}")
    for pod in tree["pods"]:
        yield Enrolled(**{**pod, "place": Place(**pod["place"])})
