# SPDX-License-Identifier: Apache-2.0
"""A tunnel whose other side never reads is given up before it costs memory without end."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from tests.support.clock import FakeClock
from tests.support.frames import PREFACE, FrameFactory
from tests.support.plane import CLIENT
from ztunnel_py.dataplane.abc import EngineSettings
from ztunnel_py.reference.io import MAX_READ
from ztunnel_py.reference.tunnel import Tunnel

if TYPE_CHECKING:
    import asyncio

    from ztunnel_py.reference.tls import Tls


class Plaintext:
    """Stands for TLS that is established and leaves bytes as they are."""

    def __init__(self) -> None:
        self.is_established = False
        self._out = b""

    def receive(self, data: memoryview) -> bytes:
        """As it came."""
        self.is_established = True
        return bytes(data)

    def send(self, data: bytes) -> None:
        """As it is."""
        self._out += data

    def take(self) -> bytes:
        """All of it."""
        data, self._out = self._out, b""
        return data

    def close(self) -> None:
        """Says nothing."""


class StuckTransport:
    """A socket that takes nothing any more."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        """Waits for ever."""
        self.waiting += len(data)

    def get_write_buffer_size(self) -> int:
        """How much waits."""
        return self.waiting

    def set_write_buffer_limits(self, high: int) -> None:
        """Makes no difference."""

    def abort(self) -> None:
        """Is over."""
        self.is_aborted = True


async def test_answers_that_nobody_reads_end_the_tunnel_at_a_bound() -> None:
    scratch = memoryview(bytearray(MAX_READ))
    tunnel = Tunnel(
        cast("Tls", Plaintext()),
        lambda _: CLIENT,
        EngineSettings(),
        FakeClock(),
        scratch,
        is_client=False,
    )
    transport = StuckTransport(waiting=7 << 19)
    tunnel.connection_made(cast("asyncio.Transport", transport))
    make = FrameFactory()
    said = PREFACE + make.settings()

    while not transport.is_aborted and transport.waiting < 32 << 20:
        scratch[: len(said)] = said
        tunnel.buffer_updated(len(said))
        said = make.ping(b"12345678") * 2000

    assert transport.is_aborted
    assert transport.waiting < 5 << 20
    assert tunnel.closed.done()
