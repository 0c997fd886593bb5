# SPDX-License-Identifier: Apache-2.0
"""A socket as a pushed stream: read sizes, what arrives early, how it ends."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.wait import settle, until
from ztunnel_py.reference.io import MAX_READ, SocketIo

if TYPE_CHECKING:
    from collections.abc import Iterator


class Heard:
    """A sink that writes down what it hears."""

    def __init__(self) -> None:
        self.data = b""
        self.ends = 0
        self.errors: list[OSError] = []
        self.drained = 0

    def received(self, data: bytes) -> None:
        """Kept."""
        self.data += data

    def ended(self) -> None:
        """Counted."""
        self.ends += 1

    def failed(self, error: OSError, *, in_writing: bool = False) -> None:
        """Kept."""
        self.errors.append(error)

    def writable(self) -> None:
        """Counted."""
        self.drained += 1


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair of non-blocking sockets."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    yield ours, theirs
    theirs.close()
    ours.close()


def scratch() -> memoryview:
    """A read buffer."""
    return memoryview(bytearray(MAX_READ))


@pytest.mark.spec("dataplane-96")
@pytest.mark.parametrize(
    ("carried", "size"),
    [
        (0, 1024),
        ((128 << 10) - 1, 1024),
        (128 << 10, 16_320),
        ((10 << 20) - 1, 16_320),
        (10 << 20, 262_080),
        (100 << 20, 262_080),
    ],
)
def test_read_size_grows_with_what_was_carried(carried: int, size: int) -> None:
    io = SocketIo(scratch())

    while carried:
        step = min(carried, io.read_size)
        io.buffer_updated(step)
        carried -= step

    assert len(io.get_buffer(-1)) == size


async def test_nothing_is_lost_that_arrives_before_the_start(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.send(b"early")
    io, heard = await SocketIo.attach(ours, scratch()), Heard()
    await settle(2)
    assert heard.data == b""

    io.start(heard)

    await until(lambda: heard.data == b"early", "the bytes")
    io.close()


async def test_end_is_heard_once_and_writing_goes_on(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    io, heard = await SocketIo.attach(ours, scratch()), Heard()
    io.start(heard)

    theirs.shutdown(socket.SHUT_WR)
    await until(lambda: heard.ends == 1, "the end")
    io.write(b"after")
    await asyncio.sleep(0)

    assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b"after"
    io.close()


async def test_paused_socket_pushes_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    io, heard = await SocketIo.attach(ours, scratch()), Heard()
    io.start(heard)
    io.pause()

    theirs.send(b"later")
    await settle(2)
    assert heard.data == b""
    io.resume()

    await until(lambda: heard.data == b"later", "the bytes")
    io.close()


async def test_congestion_ends_when_everything_was_written(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    io, heard = await SocketIo.attach(ours, scratch()), Heard()
    io.start(heard)

    io.write(bytes(8 << 20))
    await settle(1)
    assert io.is_congested
    assert 0 < io.unsent < 8 << 20
    read = 0
    while read < 8 << 20:
        read += len(await asyncio.get_running_loop().sock_recv(theirs, 1 << 20))

    await until(lambda: heard.drained == 1, "room")
    assert not io.is_congested
    io.close()


async def test_connection_that_breaks_is_reported_once(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    io, heard = await SocketIo.attach(ours, scratch()), Heard()
    io.start(heard)
    theirs.close()
    await until(lambda: heard.ends == 1, "the end")

    io.write(b"nobody reads this")

    await until(lambda: bool(heard.errors), "the break")
    assert io.is_broken
    assert len(heard.errors) == 1
    io.close()
