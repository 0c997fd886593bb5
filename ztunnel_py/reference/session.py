# SPDX-License-Identifier: Apache-2.0
"""HBONE on HTTP/2, without I/O: bytes in, events out; commands in, bytes out.

HBONE is one HTTP/2 connection that carries only CONNECT streams, each of them one TCP connection
of a user. This file is that sentence in code:

* Settings and windows are ztunnel's, exactly (spec dataplane, section 4.1).
* Connection credit returns when bytes arrive, stream credit when they are consumed. A reader that
  stalls stops its own stream and no other, however many stall.
* GOAWAY is graceful in both directions: no new streams, running ones finish. The h2 library treats
  it as the end of the connection, so GOAWAY frames are read and written here.
* A malformed request costs its own stream (RST_STREAM), not the tunnel.

The library does framing, HPACK and the stream state machine.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.utilities
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hyperframe.frame import Frame

    from ztunnel_py.dataplane.abc import EngineSettings

CLIENT_HEADER_LIST = 16384
SERVER_HEADER_LIST = 65536
MAX_STREAM_ID = 2**31 - 1
_DEFAULT_WINDOW = 65535
_HEADER_OVERHEAD = 32  # RFC 9113, section 6.5.2
_RESETS_TOLERATED = 1000  # RST_STREAMs a client may send beyond the streams it finished
_PING = bytes.fromhex("3b7cdb7a0b8716b4")
_DRAIN_PING = bytes.fromhex("0b7ba2f08b9bfe54")

ErrorCodes = h2.errors.ErrorCodes
Headers = list[tuple[str, str]]


class SessionError(Exception):
    """The connection is broken; `take` still has a GOAWAY to send."""


class StreamOpened(NamedTuple):
    """A request arrived (server)."""

    stream: int
    headers: Headers


class Responded(NamedTuple):
    """A response arrived (client)."""

    stream: int
    status: int
    headers: Headers


class StreamData(NamedTuple):
    """Bytes of a stream; call `consumed` for them when they have been passed on."""

    stream: int
    data: bytes


class StreamEnded(NamedTuple):
    """The remote side will send no more on this stream."""

    stream: int


class StreamReset(NamedTuple):
    """The remote side broke the stream."""

    stream: int
    code: int


class WindowOpened(NamedTuple):
    """More may be sent: on one stream, or on all (stream 0)."""

    stream: int


class PingAcked(NamedTuple):
    """The liveness PING came back."""


class WentAway(NamedTuple):
    """GOAWAY arrived: no new streams; those above `last_stream` were not served."""

    last_stream: int
    code: int


class DrainConfirmed(NamedTuple):
    """The remote side has seen the announced drain; later streams are refused."""


class SettingsChanged(NamedTuple):
    """The remote side's settings are known, or new."""


Event = (
    StreamOpened
    | Responded
    | StreamData
    | StreamEnded
    | StreamReset
    | WindowOpened
    | PingAcked
    | WentAway
    | DrainConfirmed
    | SettingsChanged
)


@dataclass(slots=True)
class _Stream:
    """What is kept of a stream that is not over."""

    owed: int = 0
    """Bytes consumed whose credit was not yet returned to the sender."""
    local_ended: bool = False
    remote_ended: bool = False


class Session:
    """One HBONE connection. Every method that says so adds bytes for `take`."""

    def __init__(self, settings: EngineSettings, *, is_client: bool) -> None:
        self._is_client = is_client
        self._window = settings.stream_window
        self._connection_window = settings.connection_window
        self._max_served = settings.max_streams_served
        self._header_list = CLIENT_HEADER_LIST if is_client else SERVER_HEADER_LIST
        self._raw: list[bytes] = []
        self._streams: dict[int, _Stream] = {}
        self._connection_owed = 0
        self._last_served = 0
        self._is_refusing = False
        self._resets = 0
        self._went_away: list[WentAway] = []
        self.has_settings = False
        self._h2 = self._connect(settings)

    def _connect(self, settings: EngineSettings) -> h2.connection.H2Connection:
        """The library's connection, saying exactly what ztunnel says in its first flight."""
        conn = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=self._is_client,
                header_encoding=None,
                validate_inbound_headers=False,  # done here, so that it costs one stream only
                normalize_inbound_headers=False,
            )
        )
        ours = {
            SettingCodes.INITIAL_WINDOW_SIZE: settings.stream_window,
            SettingCodes.MAX_FRAME_SIZE: settings.frame_size,
            SettingCodes.MAX_HEADER_LIST_SIZE: self._header_list,
        }
        if self._is_client:
            ours[SettingCodes.ENABLE_PUSH] = 0
        else:
            ours[SettingCodes.MAX_CONCURRENT_STREAMS] = settings.max_streams_served
        # The library always announces its own defaults; there is no public way not to.
        conn.local_settings._settings = {code: deque([value]) for code, value in ours.items()}
        conn.max_inbound_frame_size = settings.frame_size
        # Longer lists are read and answered with 431; far longer ones end the connection.
        conn.decoder.max_header_list_size = 4 * self._header_list
        conn._frame_dispatch_table[GoAwayFrame] = self._receive_goaway
        conn.initiate_connection()
        # Streams over the limit are refused one by one (below), not by ending the connection.
        conn.local_settings._settings[SettingCodes.MAX_CONCURRENT_STREAMS] = deque([MAX_STREAM_ID])
        if settings.connection_window > _DEFAULT_WINDOW:
            conn.increment_flow_control_window(settings.connection_window - _DEFAULT_WINDOW)
        return conn

    # --- bytes

    def receive(self, data: bytes) -> list[Event]:
        """Takes bytes from the wire and returns what they mean.

        Raises:
            SessionError: the remote side broke the protocol; send what `take` returns and close.
        """
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:  # the library has queued a GOAWAY
            raise SessionError(f"{type(error).__name__}: {error}") from error
        except (ValueError, KeyError) as error:
            self.close(ErrorCodes.PROTOCOL_ERROR)
            raise SessionError(f"{type(error).__name__}: {error}") from error
        self._check_unfinished()
        found: list[Event] = []
        for event in events:
            self._translate(event, found)
        found.extend(self._went_away)
        self._went_away.clear()
        self._return_connection_credit()
        return found

    def take(self) -> bytes:
        """Bytes for the wire, all of them, once."""
        self._raw.append(self._h2.data_to_send())
        data = b"".join(self._raw)
        self._raw.clear()
        return data

    # --- streams

    @property
    def max_streams(self) -> int:
        """How many streams the remote side lets us have open."""
        return int(self._h2.remote_settings.max_concurrent_streams)

    def open(self, headers: Headers) -> int:
        """Sends a request and returns its stream; the body stays open.

        Raises:
            SessionError: no more streams can be opened on this connection.
        """
        try:
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, headers)
        except (h2.exceptions.ProtocolError, h2.exceptions.NoAvailableStreamIDError) as error:
            raise SessionError(str(error)) from error
        self._streams[stream] = _Stream()
        return stream

    def respond(self, stream: int, status: int, headers: Iterable[tuple[str, str]] = ()) -> bool:
        """Answers a request: 200 keeps the stream open, any other status ends it both ways.

        Returns False if the stream is already gone.
        """
        is_final = status != 200
        try:
            self._h2.send_headers(stream, [(":status", str(status)), *headers], is_final)
        except h2.exceptions.ProtocolError:
            return False
        if is_final:
            self._ended(stream, local=True)
            self.reset(stream, ErrorCodes.NO_ERROR)
        return True

    def send(self, stream: int, data: memoryview) -> int:
        """Sends as much as windows and frame size allow; returns how many bytes.

        Raises:
            BrokenPipeError: the stream is closed for sending.
        """
        sent = 0
        try:
            window = self._h2.local_flow_control_window(stream)
            frame = self._h2.max_outbound_frame_size
            while sent < len(data) and sent < window:
                end = min(len(data), sent + frame, window)
                self._h2.send_data(stream, data[sent:end].tobytes())
                sent = end
        except h2.exceptions.ProtocolError as error:
            raise BrokenPipeError(32, "Broken pipe") from error
        return sent

    def end(self, stream: int) -> None:
        """Half-closes: an empty DATA frame with END_STREAM."""
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.end_stream(stream)
        self._ended(stream, local=True)

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """Breaks a stream; nothing if it is over."""
        if self._streams.pop(stream, None) is not None:
            self._refuse(stream, code)

    def consumed(self, stream: int, length: int) -> None:
        """Returns stream credit for bytes that were passed on, in steps of a quarter window."""
        state = self._streams.get(stream)
        if state is None or state.remote_ended:
            return
        state.owed += length
        if state.owed * 4 >= self._window:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.increment_flow_control_window(state.owed, stream)
            state.owed = 0

    # --- the connection

    def ping(self) -> None:
        """Asks for a sign of life; `PingAcked` follows."""
        self._h2.ping(_PING)

    def announce_drain(self) -> None:
        """First half of a graceful end: GOAWAY without a limit, and a PING to time the second."""
        self._go_away(MAX_STREAM_ID, ErrorCodes.NO_ERROR)
        self._h2.ping(_DRAIN_PING)

    def close(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """GOAWAY with the last stream that was served; the connection may close after it."""
        self._is_refusing = True
        self._go_away(self._last_served, code)

    # --- inside

    def _ended(self, stream: int, *, local: bool) -> None:
        state = self._streams.get(stream)
        if state is None:
            return
        state.local_ended |= local
        state.remote_ended |= not local
        if state.local_ended and state.remote_ended:
            del self._streams[stream]
            self._resets = max(0, self._resets - 1)

    def _refuse(self, stream: int, code: ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(stream, code)

    def _go_away(self, last_stream: int, code: int) -> None:
        self._raw.append(self._h2.data_to_send())  # keeps the order of what was said before
        self._raw.append(GoAwayFrame(0, last_stream_id=last_stream, error_code=code).serialize())

    def _receive_goaway(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        self._went_away.append(WentAway(frame.last_stream_id, frame.error_code))
        return [], []

    def _check_unfinished(self) -> None:
        """Refuses what is too large by its beginning; the library would first read all of it."""
        unread = self._h2.incoming_buffer._data
        block = self._h2.incoming_buffer._headers_buffer
        if int.from_bytes(unread[:3], "big") > self._h2.max_inbound_frame_size:
            self.close(ErrorCodes.FRAME_SIZE_ERROR)
            raise SessionError("frame above the size limit")
        if sum(len(frame.data) for frame in block) > self._h2.decoder.max_header_list_size:
            self.close(ErrorCodes.ENHANCE_YOUR_CALM)
            raise SessionError("header block above the size limit")

    def _return_connection_credit(self) -> None:
        if self._connection_owed * 4 >= self._connection_window:
            self._h2.increment_flow_control_window(self._connection_owed)
            self._connection_owed = 0

    def _translate(self, event: h2.events.Event, found: list[Event]) -> None:
        match event:
            case h2.events.DataReceived():
                self._connection_owed += event.flow_controlled_length
                padding = event.flow_controlled_length - len(event.data)
                if padding:
                    self.consumed(event.stream_id, padding)
                if event.data and event.stream_id in self._streams:
                    found.append(StreamData(event.stream_id, event.data))
            case h2.events.RequestReceived():
                self._admit(event.stream_id, _text(event.headers), found)
            case h2.events.ResponseReceived():
                self._read_response(event.stream_id, _text(event.headers), found)
            case h2.events.StreamEnded():
                if event.stream_id in self._streams:
                    self._ended(event.stream_id, local=False)
                    found.append(StreamEnded(event.stream_id))
            case h2.events.StreamReset():
                self._count_reset()
                if self._streams.pop(event.stream_id, None) is not None:
                    found.append(StreamReset(event.stream_id, int(event.error_code)))
            case h2.events.WindowUpdated():
                found.append(WindowOpened(event.stream_id))
            case h2.events.RemoteSettingsChanged():
                self.has_settings = True
                found.extend((SettingsChanged(), WindowOpened(0)))
            case h2.events.PingAckReceived():
                if event.ping_data == _PING:
                    found.append(PingAcked())
                elif event.ping_data == _DRAIN_PING:
                    self.close()
                    found.append(DrainConfirmed())
            case _:
                pass

    def _admit(self, stream: int, headers: Headers, found: list[Event]) -> None:
        """Lets a well-formed request through; answers any other itself."""
        if self._is_refusing or len(self._streams) >= self._max_served:
            self._refuse(stream, ErrorCodes.REFUSED_STREAM)
        elif not _is_valid(headers, is_response=False):
            self._refuse(stream, ErrorCodes.PROTOCOL_ERROR)
        else:
            self._last_served = max(self._last_served, stream)
            self._streams[stream] = _Stream()
            if _list_size(headers) > self._header_list:
                self.respond(stream, 431)
            else:
                found.append(StreamOpened(stream, headers))

    def _read_response(self, stream: int, headers: Headers, found: list[Event]) -> None:
        status = dict(headers).get(":status", "")
        if not _is_valid(headers, is_response=True) or not (status.isascii() and status.isdigit()):
            self.reset(stream, ErrorCodes.PROTOCOL_ERROR)
            found.append(StreamReset(stream, ErrorCodes.PROTOCOL_ERROR))
        else:
            found.append(Responded(stream, int(status), headers))

    def _count_reset(self) -> None:
        """Opening and breaking streams in a loop is an attack (CVE-2023-44487)."""
        self._resets += 1
        if not self._is_client and self._resets > _RESETS_TOLERATED:
            self.close(ErrorCodes.ENHANCE_YOUR_CALM)
            raise SessionError("too many reset streams")


def baggage_of(headers: Headers) -> tuple[str, ...] | None:
    """The values of the baggage headers if all are visible ASCII (and tab), else None."""
    found = tuple(value for name, value in headers if name == "baggage")
    return found if all(_is_visible(value) for value in found) else None


def _is_visible(value: str) -> bool:
    return all(char == "\t" or " " <= char <= "~" for char in value)


def _is_valid(headers: Headers, *, is_response: bool) -> bool:
    """Pseudo headers complete, unique, first and allowed; names lower case (RFC 9113, 8.3)."""
    flags = h2.utilities.HeaderValidationFlags(
        is_client=is_response,
        is_trailer=False,
        is_response_header=is_response,
        is_push_promise=False,
    )
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    try:
        for _ in h2.utilities.validate_headers(raw, flags):
            pass
    except h2.exceptions.ProtocolError:
        return False
    return True


def _text(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers as text, byte for byte: what a header may contain is for its reader to say."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _list_size(headers: Headers) -> int:
    return sum(len(name) + len(value) + _HEADER_OVERHEAD for name, value in headers)
