# SPDX-License-Identifier: Apache-2.0
"""A bounded queue that a file descriptor announces."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items wait here for the other side of the contract; `fd` is readable while some do."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, item: T) -> bool:
        """Adds an item; False if the oldest had to go for it."""
        has_room = len(self._items) < self._limit
        if not has_room:
            self._items.popleft()
        self._items.append(item)
        self._announce()
        return has_room

    def take(self, limit: int) -> list[T]:
        """At most `limit` items, oldest first; `fd` stays readable if some are left."""
        if self.fd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.fd)
        found = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
        if self._items:
            self._announce()
        return found

    def close(self) -> None:
        """Closes the descriptor; what waits can still be taken."""
        os.close(self.fd)
        self.fd = -1

    def _announce(self) -> None:
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)
