# SPDX-License-Identifier: Apache-2.0
"""The test vectors of docs/hbone-vectors.json, and what bytes say, in the words that they use."""

from __future__ import annotations

import ipaddress
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperframe import frame as frames

from tests.support.frames import PREFACE, FrameReader
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.frames import Headers

PATH = Path(__file__).parents[2] / "docs" / "hbone-vectors.json"
_VECTORS: dict[str, dict[str, dict[str, Any]]] = json.loads(PATH.read_text())
FRAMES, PROXY_V2 = _VECTORS["frames"], _VECTORS["proxy_v2"]
Said = dict[str, Any]

_SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
_TCP4, _TCP6, _UNSPECIFIED = 0x11, 0x21, 0x01
_TLV_IDENTITY = 0xD0


def frame_bytes(name: str) -> bytes:
    """The bytes of a vector of frames."""
    return bytes.fromhex("".join(FRAMES[name]["hex"]))


def says(name: str) -> list[Said]:
    """What a vector of frames says."""
    return list(FRAMES[name]["says"])


def headers(name: str) -> Headers:
    """The headers of a vector that begins with HEADERS."""
    return [(key, value) for key, value in says(name)[0]["headers"]]


def proxy_bytes(name: str) -> bytes:
    """The bytes of a PROXY v2 vector."""
    return bytes.fromhex("".join(PROXY_V2[name]["hex"]))


def read(data: bytes) -> list[Said]:
    """What bytes of a connection say that is at its beginning, as HPACK goes."""
    said: list[Said] = []
    reader = FrameReader()
    if data.startswith(PREFACE):
        said.append({"frame": "PREFACE"})
        data = data[len(PREFACE) :]
    for frame in reader.feed(data):
        carried = reader.headers(frame) if isinstance(frame, frames.HeadersFrame) else ()
        said.append(told(frame, carried))
    return said


def told(frame: frames.Frame, carried: Sequence[tuple[str, str]] = ()) -> Said:
    """What one frame says; `carried` are the headers in it."""
    flags = {"flags": sorted(frame.flags)} if frame.flags else {}
    begin = {"stream": frame.stream_id, **flags}
    match frame:
        case frames.SettingsFrame():
            settings = {str(key): value for key, value in frame.settings.items()}
            return {"frame": "SETTINGS", **begin, "settings": settings}
        case frames.WindowUpdateFrame():
            return {"frame": "WINDOW_UPDATE", **begin, "increment": frame.window_increment}
        case frames.HeadersFrame():
            return {"frame": "HEADERS", **begin, "headers": [list(one) for one in carried]}
        case frames.DataFrame():
            return {"frame": "DATA", **begin, "data": frame.data.decode()}
        case frames.RstStreamFrame():
            return {"frame": "RST_STREAM", **begin, "code": frame.error_code}
        case frames.PingFrame():
            return {"frame": "PING", **begin, "payload": frame.opaque_data.hex()}
        case frames.GoAwayFrame():
            last = {"last_stream": frame.last_stream_id, "code": frame.error_code}
            return {"frame": "GOAWAY", **begin, **last}
        case _:
            raise AssertionError(f"no vector has a {frame}")


def read_proxy(data: bytes) -> Said:
    """What a PROXY v2 header says, which must be all of `data`."""
    assert data[:13] == _SIGNATURE + b"\x21"
    family, length = struct.unpack("!BH", data[13:16])
    body = data[16:]
    assert len(body) == length
    size = {_TCP4: 4, _TCP6: 16, _UNSPECIFIED: 0}[family]
    source = destination = None
    if size:
        ports = struct.unpack("!HH", body[2 * size : 2 * size + 4])
        source = SockAddr(ipaddress.ip_address(body[:size]), ports[0])
        destination = SockAddr(ipaddress.ip_address(body[size : 2 * size]), ports[1])
        body = body[2 * size + 4 :]
    identity = None
    if body:
        kind, length = struct.unpack("!BH", body[:3])
        assert (kind, length) == (_TLV_IDENTITY, len(body) - 3)
        identity = body[3:].decode()
    return {"source": source, "destination": destination, "identity": identity}
