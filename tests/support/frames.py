# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 frames, written and read one by one, also such as no library would send."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hpack
from hyperframe import frame as frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Headers = list[tuple[str, str]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Settings (RFC 9113, 6.5.2) and error codes (7) that tests name.
ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = 2, 3, 4, 5, 6
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
ENHANCE_YOUR_CALM = 11


class FrameFactory:
    """Writes frames; holds the HPACK state of one connection's sending side."""

    def __init__(self) -> None:
        self._encoder = hpack.Encoder()

    def settings(self, values: Mapping[int, int] | None = None, *, ack: bool = False) -> bytes:
        """SETTINGS, or its acknowledgement."""
        flags = ["ACK"] if ack else []
        return frames.SettingsFrame(settings=dict(values or {}), flags=flags).serialize()

    def headers(self, stream: int, headers: Headers, *, end: bool = False) -> bytes:
        """HEADERS, whole."""
        flags = ["END_HEADERS", *(["END_STREAM"] if end else [])]
        return frames.HeadersFrame(stream, self.block(headers), flags=flags).serialize()

    def block(self, headers: Headers) -> bytes:
        """Headers as HPACK has them."""
        return self._encoder.encode(headers)

    def data(self, stream: int, payload: bytes, *, end: bool = False, padding: int = 0) -> bytes:
        """DATA, of any size."""
        flags = [*(["END_STREAM"] if end else []), *(["PADDED"] if padding else [])]
        return frames.DataFrame(stream, payload, pad_length=padding, flags=flags).serialize()

    def reset(self, stream: int, code: int = CANCEL) -> bytes:
        """RST_STREAM."""
        return frames.RstStreamFrame(stream, error_code=code).serialize()

    def window(self, stream: int, increment: int) -> bytes:
        """WINDOW_UPDATE; stream 0 is the connection."""
        return frames.WindowUpdateFrame(stream, window_increment=increment).serialize()

    def ping(self, payload: bytes, *, ack: bool = False) -> bytes:
        """PING with eight bytes, or its acknowledgement."""
        return frames.PingFrame(opaque_data=payload, flags=["ACK"] if ack else []).serialize()

    def goaway(self, last_stream: int, code: int = NO_ERROR) -> bytes:
        """GOAWAY."""
        return frames.GoAwayFrame(last_stream_id=last_stream, error_code=code).serialize()


class FrameReader:
    """Splits bytes into frames."""

    def __init__(self, *, skip: int = 0) -> None:
        """`skip`: bytes before the first frame, the client's preface."""
        self._pending = b""
        self._skip = skip
        self._decoder = hpack.Decoder()

    def feed(self, data: bytes) -> Iterable[frames.Frame]:
        """Frames that are complete now."""
        self._pending += data
        while len(self._pending) >= self._skip + 9:
            start = self._skip + 9
            frame, length = frames.Frame.parse_frame_header(
                memoryview(self._pending[self._skip : start])
            )
            if len(self._pending) < start + length:
                return
            frame.parse_body(memoryview(self._pending[start : start + length]))
            self._pending = self._pending[start + length :]
            self._skip = 0
            yield frame

    def headers(self, frame: frames.HeadersFrame) -> Headers:
        """What a HEADERS frame says; to be called for each, in order."""
        return [(str(name), str(value)) for name, value in self._decoder.decode(frame.data)]


def connect(authority: str = "10.0.0.9:80", *more: tuple[str, str]) -> Headers:
    """Headers of a CONNECT."""
    return [(":method", "CONNECT"), (":authority", authority), *more]
