# SPDX-License-Identifier: Apache-2.0
"""One HBONE connection: a socket, TLS on it, HTTP/2 on that, and its CONNECT streams.

Drives the two sans-io layers from one asyncio transport and keeps the connection honest: PING
liveness, GOAWAY, a bounded out-buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING, cast

from ztunnel_py.errors import Reason
from ztunnel_py.reference import session
from ztunnel_py.reference.revocation import RevokedError
from ztunnel_py.reference.session import ErrorCodes, Session, SessionError
from ztunnel_py.reference.stream import Stream, broken_pipe

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.dataplane.abc import EngineSettings
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.reference.session import Headers
    from ztunnel_py.reference.tls import Tls

_HIGH_WATER = 1 << 20  # unsent bytes on the socket above which no stream is served
_FLUSH_AT = 256 << 10  # bytes of streams that are sent within a turn, so that the socket can object
_CONTROL_LIMIT = 4 << 20  # unsent bytes above which a remote side that never reads is given up
_LINGER_S = 1.0


class Tunnel(asyncio.BufferedProtocol):
    """One HBONE connection. `established` resolves once TLS is complete and accepted."""

    def __init__(
        self,
        tls: Tls,
        check_remote: Callable[[Tls], Identity],
        settings: EngineSettings,
        clock: Clock,
        scratch: memoryview,
        *,
        is_client: bool,
    ) -> None:
        self._tls = tls
        self._check_remote = check_remote
        self._settings = settings
        self._clock = clock
        self._scratch = scratch
        self.is_client = is_client
        self.id = 0
        self._born = clock.now()
        self._transport: asyncio.Transport | None = None
        self._timer: Timer | None = None
        self._flush_queued = False
        self._queued = 0
        """Bytes of streams that the session holds for the next flush."""
        self._slots_freed: deque[asyncio.Future[None]] = deque()
        self.session = Session(settings, is_client=is_client)
        self.streams: dict[int, Stream] = {}
        self.identity: Identity | None = None
        self.established: asyncio.Future[None] = asyncio.Future()
        self.closed: asyncio.Future[None] = asyncio.Future()
        """Nothing is carried any more."""
        self.flushed: asyncio.Future[None] = asyncio.Future()
        """Closed, and the last words have left."""
        self.on_stream: Callable[[Stream], None] | None = None
        self.on_buffered: Callable[[int], None] | None = None
        self.is_congested = False
        self.is_draining = False
        self._drain_confirmed = is_client
        self.close_when_idle = False
        self.ping_timed_out = False

    async def attach(self, sock: socket.socket) -> None:
        """Takes over a connected socket and starts the handshake."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)

    # --- our side

    @property
    def is_usable(self) -> bool:
        """New streams may be opened on it."""
        return not (self.is_draining or self.close_when_idle or self.closed.done())

    async def open(self, headers: Headers) -> Stream:
        """Opens a CONNECT stream, waiting for a free one if the remote side limits us.

        Raises:
            SessionError: the tunnel cannot carry more streams.
        """
        while len(self.streams) >= self.session.max_streams and self.is_usable:
            freed: asyncio.Future[None] = asyncio.Future()
            self._slots_freed.append(freed)
            try:
                await freed
            except asyncio.CancelledError:
                self._wake_waiting()  # the place may have been given to a caller that is gone
                raise
        if self.closed.done() or self.is_draining:
            raise SessionError("connection is closing")
        stream = Stream(self, self.session.open(headers), headers)
        self.streams[stream.number] = stream
        self.flush()
        return stream

    def close_stream(self, stream: Stream, code: ErrorCodes) -> None:
        """Forgets a stream, resetting it if it is not over."""
        stream.is_closed = True
        self.session.reset(stream.number, code)
        self.flush_soon()
        self._forget(stream)

    def drain(self) -> None:
        """GOAWAY; running streams finish, then the tunnel closes."""
        if not self.is_draining and not self.closed.done():
            self.is_draining = True
            if self._tls.is_established and not self.is_client:
                self.session.announce_drain()
                self.flush()
            self._settle()

    def retire(self) -> None:
        """No new streams from us; closes with GOAWAY NO_ERROR once the last is over."""
        self.close_when_idle = True
        self._settle()

    def close(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """GOAWAY, close_notify, close. Streams that live break."""
        if self._transport is None or self.closed.done():
            return
        if self._tls.is_established:
            self.session.close(code)
            self.flush()
            self._tls.close()
        self._hang_up()

    def is_revoked(self) -> bool:
        """The other side was accepted, and by now is revoked."""
        if self.identity is None or self.closed.done():
            return False
        try:
            self._tls.check_revoked()
        except RevokedError:
            return True
        return False

    def revoke(self) -> None:
        """Ends what it carries, and then itself, because the other side is revoked."""
        for stream in self.streams.values():
            if stream.kill is not None:
                stream.kill(Reason.CERT_REVOKED, "")
        self.close()

    def abort(self) -> None:
        """Closes at once, with nothing further said."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(broken_pipe())

    @property
    def age_s(self) -> float:
        """Seconds since it was dialled or accepted."""
        return self._clock.now() - self._born

    def now(self) -> float:
        """Seconds of the engine's clock."""
        return self._clock.now()

    def buffered(self, change: int) -> None:
        """Bytes that wait for stalled readers became more, or fewer."""
        if self.on_buffered is not None and change:
            self.on_buffered(change)

    def flush_soon(self) -> None:
        """Sends what the session has to say at the end of this turn of the loop."""
        if not self._flush_queued:
            self._flush_queued = True
            asyncio.get_running_loop().call_soon(self.flush)

    def queued(self, length: int) -> None:
        """A stream gave bytes to the session: they leave at the end of this turn, many sooner."""
        self._queued += length
        if self._queued >= _FLUSH_AT:
            self.flush()
        elif length:
            self.flush_soon()

    def flush(self) -> None:
        """Sends what the session has to say: one TLS write, one socket write."""
        self._flush_queued = False
        self._queued = 0
        if self._transport is None or self.closed.done() or not self._tls.is_established:
            return
        if plain := self.session.take():
            self._tls.send(plain)
        if wire := self._tls.take():
            self._transport.write(wire)
            if self._transport.get_write_buffer_size() > _CONTROL_LIMIT:
                self.abort()

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the handshake."""
        own = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport = own
        own.set_write_buffer_limits(high=_HIGH_WATER)
        if self.is_client:
            self._tls.shake_hands()
            own.write(self._tls.take())

    def get_buffer(self, sizehint: int) -> memoryview:
        """The engine's shared buffer."""
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Wire bytes: through TLS, then HTTP/2."""
        if self.closed.done():
            return
        was_established = self._tls.is_established
        try:
            plain = self._tls.receive(self._scratch[:nbytes])
            if self._tls.is_established and not was_established and not self._establish():
                self._end(None)
                return
            if plain:
                self._handle(plain)
            self.flush()
        except EOFError:
            self._end(None)
        except (ssl.SSLError, SessionError) as error:
            self._end(error)
        else:
            if not self._tls.is_established and self._transport is not None:
                self._transport.write(self._tls.take())

    def eof_received(self) -> bool:
        """The remote side is gone: a tunnel has no half-open state; False closes our side."""
        self._end(None)
        return False

    def pause_writing(self) -> None:
        """The socket is full: streams stop pushing into the tunnel."""
        self.is_congested = True

    def resume_writing(self) -> None:
        """The socket has room: streams that wait go on."""
        self.is_congested = False
        self._check_flushed()
        for stream in list(self.streams.values()):
            stream.pump()
            stream.report_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._lost(exc if isinstance(exc, OSError) else broken_pipe())
        self._check_flushed()

    # --- inside

    def _establish(self) -> bool:
        """TLS is complete: who is it? Then the first PING is due in one interval."""
        try:
            self.identity = self._check_remote(self._tls)
        except Exception as error:  # any doubt about who this is ends the tunnel, unsaid
            self._refuse(error)
            return False
        if not self.established.done():
            self.established.set_result(None)
        self._timer = self._clock.call_later(self._settings.ping_interval_s, self._ping)
        return True

    def _refuse(self, error: Exception) -> None:
        if not self.established.done():
            self.established.set_exception(error)
            self.established.exception()

    def _handle(self, plain: bytes) -> None:
        for event in self.session.receive(plain):
            match event:
                case session.StreamData(number, data):
                    if number in self.streams:
                        self.streams[number].arrived(data)
                case session.WindowOpened(0):
                    for stream in list(self.streams.values()):
                        stream.pump()
                case session.WindowOpened(number):
                    if number in self.streams:
                        self.streams[number].pump()
                case session.StreamOpened(number, headers):
                    self._opened(Stream(self, number, headers))
                case session.Responded(number, status, headers):
                    if number in self.streams and not self.streams[number].response.done():
                        self.streams[number].response.set_result((status, headers))
                case session.StreamEnded(number):
                    if number in self.streams:
                        self.streams[number].remote_ended()
                case session.StreamReset(number, code):
                    if number in self.streams:
                        self.streams[number].was_reset(code)
                case session.PingAcked():
                    self._restart_ping()
                case session.WentAway(last, _):
                    self._went_away(last)
                case session.DrainConfirmed():
                    self._drain_confirmed = True
                    self._settle()
                case session.SettingsChanged():
                    self._wake_waiting()

    def _opened(self, stream: Stream) -> None:
        assert self.on_stream is not None
        if self.closed.done():
            return
        self.streams[stream.number] = stream
        self.on_stream(stream)

    def _went_away(self, last_stream: int) -> None:
        if not self.is_client:  # a client that goes away opens no more streams, and that is all
            self.close_when_idle = True
        else:
            self.is_draining = True
            for number, stream in list(self.streams.items()):
                if number > last_stream:
                    stream.broke(broken_pipe())
                    self.close_stream(stream, ErrorCodes.REFUSED_STREAM)
        self._settle()

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.number, None)
        self._wake_waiting()
        self._settle()

    def _wake_waiting(self) -> None:
        free = self.session.max_streams - len(self.streams)
        while self._slots_freed and (free > 0 or not self.is_usable):
            freed = self._slots_freed.popleft()
            if not freed.done():
                freed.set_result(None)
                free -= 1

    def _settle(self) -> None:
        """Closes a tunnel that is to go and carries nothing."""
        if self.streams:
            return
        if self.close_when_idle or (self.is_draining and self._may_close):
            asyncio.get_running_loop().call_soon(self._close_if_idle)

    @property
    def _may_close(self) -> bool:
        """The remote side knows that we drain, or never got as far as to care."""
        return self._drain_confirmed or not self._tls.is_established

    def _close_if_idle(self) -> None:
        if not self.streams:
            self.close()

    def _ping(self) -> None:
        self.session.ping()
        self.flush()
        self._timer = self._clock.call_later(self._settings.ping_timeout_s, self._ping_timeout)

    def _restart_ping(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(self._settings.ping_interval_s, self._ping)

    def _ping_timeout(self) -> None:
        self.ping_timed_out = True
        self.close()

    def _end(self, error: Exception | None) -> None:
        """The remote side ended or broke the connection: say what TLS wants said, and close."""
        if self.closed.done() or self._transport is None:
            return
        if error is not None:
            self._refuse(error)
            self.flush()
        self._hang_up()

    def _hang_up(self) -> None:
        """Sends the last words and FIN, then reads to the end.

        A close with bytes unread would be a reset, which can destroy what we have just sent.
        """
        assert self._transport is not None
        self._lost(broken_pipe())
        self._transport.write(self._tls.take())
        with contextlib.suppress(OSError, RuntimeError):
            self._transport.write_eof()
        self._transport.set_write_buffer_limits(high=0)
        self._check_flushed()
        self._linger(self._unsent)

    @property
    def _unsent(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _check_flushed(self) -> None:
        if self.closed.done() and not self._unsent and not self.flushed.done():
            self.flushed.set_result(None)

    def _linger(self, unsent: int) -> None:
        """Gives the other side time to read, as long as it does."""

        def look() -> None:
            if self._transport is not None and 0 < self._unsent < unsent:
                self._linger(self._unsent)
            elif self._transport is not None:
                self._transport.abort()

        self._timer = self._clock.call_later(_LINGER_S, look)

    def _lost(self, error: OSError) -> None:
        if self.closed.done():
            return
        self.closed.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        self._refuse(error)
        for stream in list(self.streams.values()):
            stream.broke(error)
            stream.is_closed = True
        self.streams.clear()
        self._wake_waiting()
