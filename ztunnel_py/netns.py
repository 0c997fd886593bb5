# SPDX-License-Identifier: Apache-2.0
"""Sockets in other network namespaces, made by a short visit of the calling thread.

A socket stays in the namespace that it was made in, so that is all that has to happen there: bind
and connect can be called from anywhere. Source: spec identity-ops, section B.8.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import socket
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_IPV6_OFF_ON_LOOPBACK = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_HOME = "/proc/thread-self/ns/net"


class Netns:
    """A descriptor of a network namespace, closed at the latest when nobody has it any more."""

    def __init__(self, descriptor: int) -> None:
        """Duplicates `descriptor`.

        Raises:
            OSError: it is none.
        """
        self._descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)

    def close(self) -> None:
        """Lets the namespace go now; whoever still uses this gets EBADF."""
        self._descriptor = -1
        self._finalizer()

    def fileno(self) -> int:
        """The descriptor; ours. -1 if it is closed."""
        return self._descriptor

    def is_network(self) -> bool:
        """It is a network namespace, and not something else."""
        try:
            return fcntl.ioctl(self._descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
        except OSError:
            return False

    def is_same(self, other: Netns) -> bool:
        """Both stand for one namespace."""
        mine, theirs = (os.fstat(one.fileno()) for one in (self, other))
        return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)


def current() -> Netns:
    """The namespace of the calling thread.

    Raises:
        OSError: the kernel does not tell.
    """
    return at(_HOME)


def at(path: str) -> Netns:
    """What is at a path, mostly a namespace: `is_network` tells.

    Raises:
        OSError: nothing is there, or it may not be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Netns(descriptor)
    finally:
        os.close(descriptor)


def open_socket(netns: Netns | None, family: int, kind: int) -> socket.socket:
    """A socket in the namespace `netns`; None: in ours.

    Raises:
        OSError: the namespace cannot be entered, or no socket can be made.
    """
    if netns is None:
        return socket.socket(family, kind)
    with inside(netns):
        return socket.socket(family, kind)


def has_ipv6_loopback(netns: Netns | None) -> bool:
    """Whether `::1` can be bound in a namespace; None: in ours.

    Where the kernel does not tell, it is assumed.
    """
    try:
        with contextlib.nullcontext() if netns is None else inside(netns):
            return _IPV6_OFF_ON_LOOPBACK.read_text().strip() != "1"
    except OSError:
        return True


@contextlib.contextmanager
def inside(netns: Netns) -> Iterator[None]:
    """The calling thread is in the namespace until the block ends; nothing may wait there.

    A thread that cannot come back ends the program: whatever it did next would be done in a pod.

    Raises:
        OSError: the namespace cannot be entered.
    """
    home = current()
    _enter(netns.fileno())
    try:
        yield
    finally:
        try:
            _enter(home.fileno())
        except OSError:
            os.abort()


def _enter(descriptor: int) -> None:
    if _libc().setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter a network namespace: {os.strerror(number)}")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
