# SPDX-License-Identifier: Apache-2.0
"""One text for all who ask at about the same time, made without holding up the event loop.

A text is of the time after everybody who gets it has asked: who asks while one is being made waits
for the next. At most two exist, so a hundred readers cost hardly more memory than two; the third is
begun when all readers of the first have it, or were too slow.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ztunnel_py.admin.json_text import pieces
from ztunnel_py.yields import Yields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Blocks = tuple[bytes, ...]

_SLICE = 4 * 1024
"""Characters made between two turns of the loop, under a millisecond of work."""
_BLOCK = 128 * 1024
"""Bytes that are kept, and later sent, as one."""
_AT_ONCE = 2
"""Texts that may exist."""
_READERS = 8
"""To whom a text is sent at the same time: the kernel keeps megabytes for each."""


class Rendering:
    """The JSON text of what `make` returns, shared; `make` runs on the event loop."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._making = asyncio.Lock()
        self._reading = asyncio.Semaphore(_READERS)
        self._next = _Text()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[Blocks]:
        """The text in blocks, for as long as it is read."""
        mine = self._next
        mine.n_readers += 1
        try:
            async with mine.making:
                if mine.blocks is None:
                    mine.blocks = await self._made(mine)
                blocks = mine.blocks
            async with self._reading:
                yield blocks
        finally:
            mine.n_readers -= 1
            if not mine.n_readers and mine.has_room:
                mine.blocks, mine.has_room = None, False
                self._room.release()

    async def _made(self, text: _Text) -> Blocks:
        if not text.has_room:
            await self._room.acquire()
            text.has_room = True
        async with self._making:
            if self._next is text:
                self._next = _Text()
            return tuple([block async for block in _blocks(pieces(self._make()))])


class _Text:
    """A text that is to be made, or is there."""

    def __init__(self) -> None:
        self.blocks: Blocks | None = None
        self.making = asyncio.Lock()
        self.has_room = False
        self.n_readers = 0


async def _blocks(texts: Iterator[str]) -> AsyncIterator[bytes]:
    """Blocks of the same text; the loop turns many times within each."""
    block, yields = bytearray(), Yields()
    for slice_ in _joined(texts):
        block += slice_.encode("utf-8", "backslashreplace")
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
        yields.offer()
        await asyncio.sleep(0)
    if block:
        yield bytes(block)


def _joined(texts: Iterator[str]) -> Iterator[str]:
    parts, length = [], 0
    for text in texts:
        parts.append(text)
        length += len(text)
        if length >= _SLICE:
            yield "".join(parts)
            parts, length = [], 0
    yield "".join(parts)
