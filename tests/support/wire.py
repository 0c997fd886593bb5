# SPDX-License-Identifier: Apache-2.0
"""The other end of an HBONE connection, scripted: real TLS, and HTTP/2 frame by frame."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from hyperframe import frame as frames

from tests.support.frames import (
    ENABLE_PUSH,
    INITIAL_WINDOW,
    PREFACE,
    FrameFactory,
    FrameReader,
    connect,
)
from tests.support.tls import TlsStream, tls_context
from tests.support.wait import until
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.frames import Headers
    from ztunnel_py.identity.certificates import WorkloadCertificate

F = TypeVar("F", bound=frames.Frame)

_FRAME = 1 << 20
_LARGE_WINDOW = {INITIAL_WINDOW: 4 << 20}


class Wire:
    """One end of an HBONE connection. It answers SETTINGS and PING; all else a test says."""

    def __init__(self, tls: TlsStream, *, is_client: bool) -> None:
        self._tls = tls
        self._frames = FrameReader(skip=0 if is_client else len(PREFACE))
        self._next_stream = 1
        self._pongs: set[bytes] = set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.local = SockAddr.of(tls.writer.get_extra_info("sockname"))
        self.remote = SockAddr.of(tls.writer.get_extra_info("peername"))
        self.make = FrameFactory()
        self.answers_pings = True
        self.responds: int | None = None
        """Status that every CONNECT is answered with, and its end with an end; None leaves both
        to the test."""
        self.frames: list[frames.Frame] = []
        self.headers: dict[int, Headers] = {}
        """The last HEADERS of each stream."""
        self.bodies: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        """Error code of each stream that was reset."""
        self.sent: Counter[int] = Counter()
        """Bytes of DATA said per stream."""
        self.is_closed = False
        self.alert = ""
        """What the engine's TLS ended with, in the library's words."""
        self._reading = asyncio.ensure_future(self._read())

    # --- saying

    def say(self, *pieces: bytes) -> None:
        """Sends bytes, in one TLS write."""
        self._tls.write(b"".join(pieces))

    def greet(self, settings: Mapping[int, int] = _LARGE_WINDOW, *, is_client: bool = True) -> None:
        """Preface and SETTINGS, with room for 16 MiB on the connection."""
        if is_client:
            settings = {ENABLE_PUSH: 0, **settings}
        self.say(
            PREFACE if is_client else b"",
            self.make.settings(settings),
            self.make.window(0, (16 << 20) - 65535),
        )

    def connect(self, *more: tuple[str, str], authority: str = "10.0.0.9:80") -> int:
        """A CONNECT; returns its stream."""
        return self.request(connect(authority, *more))

    def request(self, headers: Headers, *, end: bool = False) -> int:
        """Any request; returns its stream."""
        stream = self._next_stream
        self._next_stream += 2
        self.say(self.make.headers(stream, headers, end=end))
        return stream

    def respond(self, stream: int, status: int = 200, *, end: bool = False) -> None:
        """A response."""
        self.say(self.make.headers(stream, [(":status", str(status))], end=end))

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """DATA, whatever the windows allow."""
        self.sent[stream] += len(payload)
        self.say(self.make.data(stream, payload, end=end))

    async def send(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """DATA of up to 1 MiB, as the engine's windows allow."""
        for start in range(0, len(payload), _FRAME):
            piece = payload[start : start + _FRAME]
            await self._room(stream, len(piece))
            self.data(stream, piece)
        if end:
            self.data(stream, b"", end=True)

    def pause(self) -> None:
        """Reads no more."""
        self._has_room.clear()

    def resume(self) -> None:
        """Reads again."""
        self._has_room.set()

    def hang_up(self) -> None:
        """Closes the socket, without close_notify."""
        self._tls.writer.transport.abort()

    # --- hearing

    async def fence(self) -> None:
        """Returns when the engine has read all that was said, answers to its PINGs included."""
        for payload in (b"fence  1", b"fence  2"):
            self._pongs.discard(payload)
            self.say(self.make.ping(payload))
            await self._pong(payload)

    async def status(self, stream: int) -> int:
        """The status of a response, waited for."""
        await until(lambda: stream in self.headers, f"a response on stream {stream}")
        return int(dict(self.headers[stream])[":status"])

    async def asked(self, count: int = 1) -> int:
        """The stream of the `count`-th request, waited for."""
        await until(lambda: len(self.headers) >= count, f"{count} requests")
        return sorted(self.headers)[count - 1]

    async def body(self, stream: int, length: int) -> bytes:
        """The first `length` bytes of a stream, waited for."""
        await until(lambda: self.received(stream) >= length, f"{length} bytes on {stream}")
        return bytes(self.bodies[stream][:length])

    async def end(self, stream: int) -> bytes:
        """All of a stream, once END_STREAM is there."""
        await until(lambda: stream in self.ended, f"END_STREAM on {stream}")
        return bytes(self.bodies.get(stream, b""))

    async def reset(self, stream: int) -> int:
        """The code a stream is reset with, waited for."""
        await until(lambda: stream in self.resets, f"RST_STREAM on {stream}")
        return self.resets[stream]

    async def goaway(self, count: int = 1) -> frames.GoAwayFrame:
        """The `count`-th GOAWAY, waited for."""
        await until(lambda: len(self.of(frames.GoAwayFrame)) >= count, f"{count} GOAWAY")
        return self.of(frames.GoAwayFrame)[count - 1]

    async def closed(self) -> None:
        """Returns when the engine has closed the connection."""
        await until(lambda: self.is_closed, "the connection to close")

    @property
    def names(self) -> list[str]:
        """Names in the other side's certificate."""
        return self._tls.names

    @property
    def version_and_suite(self) -> tuple[str | None, str | None]:
        """Of TLS."""
        return self._tls.version_and_suite

    def credit(self, stream: int) -> int:
        """Bytes that may be sent on a stream now."""
        settings = [one.settings for one in self.of(frames.SettingsFrame)]
        initial = next((one[INITIAL_WINDOW] for one in settings if INITIAL_WINDOW in one), 65535)
        own = initial + self.granted(stream) - self.sent[stream]
        return min(own, 65535 + self.granted(0) - sum(self.sent.values()))

    def granted(self, stream: int) -> int:
        """Sum of the engine's WINDOW_UPDATEs of a stream, or of the connection (0)."""
        updates = self.of(frames.WindowUpdateFrame)
        return sum(one.window_increment for one in updates if one.stream_id == stream)

    def received(self, stream: int) -> int:
        """Bytes of a stream so far."""
        return len(self.bodies.get(stream, b""))

    def of(self, kind: type[F]) -> list[F]:
        """Frames of one kind so far."""
        return [frame for frame in self.frames if isinstance(frame, kind)]

    # --- inside

    async def _room(self, stream: int, length: int) -> None:
        await until(lambda: self.credit(stream) >= length, f"{length} bytes of credit")

    async def _pong(self, payload: bytes) -> None:
        await until(lambda: payload in self._pongs, f"the ack of {payload!r}")

    async def _read(self) -> None:
        try:
            while data := await self._tls.read():
                for frame in self._frames.feed(data):
                    self.frames.append(frame)
                    self._hear(frame)
                await self._has_room.wait()
        except ssl.SSLError as error:
            self.alert = error.reason or str(error)
        except OSError:
            pass
        self.is_closed = True

    def _hear(self, frame: frames.Frame) -> None:
        match frame:
            case frames.HeadersFrame():
                self.headers[frame.stream_id] = self._frames.headers(frame)
                if self.responds is not None:
                    self.respond(frame.stream_id, self.responds)
            case frames.DataFrame():
                self.bodies.setdefault(frame.stream_id, bytearray()).extend(frame.data)
            case frames.RstStreamFrame():
                self.resets[frame.stream_id] = frame.error_code
            case frames.SettingsFrame() if "ACK" not in frame.flags:
                self.say(self.make.settings(ack=True))
            case frames.PingFrame() if "ACK" in frame.flags:
                self._pongs.add(frame.opaque_data)
            case frames.PingFrame() if self.answers_pings:
                self.say(self.make.ping(frame.opaque_data, ack=True))
            case _:
                pass
        if "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)
            if self.responds == 200:
                self.data(frame.stream_id, b"", end=True)


async def dial(
    to: SockAddr, context: ssl.SSLContext, source: str | None = None, *, in_crumbs: bool = False
) -> Wire:
    """An HBONE client's end, after TLS and before its preface."""
    local = None if source is None else (source, 0)
    ends = await asyncio.open_connection(str(to.ip), to.port, local_addr=local)
    tls = TlsStream(*ends, context)
    tls.in_crumbs = in_crumbs
    await tls.shake_hands()
    return Wire(tls, is_client=True)


class WireServer:
    """An HBONE server; its tunnels greet, and are the test's from then on."""

    def __init__(
        self,
        certificate: WorkloadCertificate,
        settings: Mapping[int, int] = _LARGE_WINDOW,
        responds: int | None = 200,
        *,
        trusts_all: bool = False,
        in_crumbs: bool = False,
    ) -> None:
        self._in_crumbs = in_crumbs
        self.context = tls_context(certificate, is_server=True, trusts_all=trusts_all)
        """A test may change it before anybody connects."""
        self._settings = settings
        self._responds = responds
        self.tunnels: list[Wire] = []
        self.accepted = 0
        """Connections, also those whose handshake failed."""
        self.alerts: list[str] = []
        """How those failed, in the library's words."""
        self.address: SockAddr
        self._server: asyncio.Server

    async def start(self, host: str) -> WireServer:
        """Listens on a port of the kernel's choice."""
        self._server = await asyncio.start_server(self._accept, host, 0)
        self.address = SockAddr.of(self._server.sockets[0].getsockname())
        return self

    async def tunnel(self, count: int = 1) -> Wire:
        """The `count`-th tunnel, waited for."""
        await until(lambda: len(self.tunnels) >= count, f"{count} tunnels")
        return self.tunnels[count - 1]

    def close(self) -> None:
        """Stops listening and hangs up on everybody."""
        self._server.close()
        for tunnel in self.tunnels:
            tunnel.hang_up()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        tls = TlsStream(reader, writer, self.context)
        tls.in_crumbs = self._in_crumbs
        try:
            await tls.shake_hands()
        except ssl.SSLError as error:
            self.alerts.append(error.reason or str(error))
            return
        except OSError:
            return
        wire = Wire(tls, is_client=False)
        if not self._server.is_serving():
            wire.hang_up()  # was on its way when the test ended
        wire.responds = self._responds
        wire.greet(self._settings, is_client=False)
        self.tunnels.append(wire)
