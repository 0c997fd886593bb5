# SPDX-License-Identifier: Apache-2.0
"""One end of an HBONE connection spoken by the h2 library, which checks all that it hears."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import h2.connection
import h2.events
from h2.config import H2Configuration

from tests.support.plane import CLIENT
from tests.support.tls import TlsStream, tls_context

if TYPE_CHECKING:
    from tests.support.net import Net
    from ztunnel_py.state.address import SockAddr

AUTHORITY = "10.0.0.9:80"


class Strict:
    """One end of a connection; whatever the library does not allow ends it with an error."""

    def __init__(self, tls: TlsStream, *, is_client: bool) -> None:
        self._tls = tls
        self._http = h2.connection.H2Connection(H2Configuration(client_side=is_client))
        self._http.initiate_connection()
        self._flush()
        self.statuses: dict[int, str] = {}
        self.bodies: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.error: Exception | None = None
        self.responds = not is_client
        self._unsent: dict[int, tuple[bytes, bool]] = {}
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def dial(cls, to: SockAddr, net: Net) -> Strict:
        """A client's end, after TLS."""
        ends = await asyncio.open_connection(str(to.ip), to.port)
        tls = TlsStream(*ends, tls_context(net.certify(CLIENT), is_server=False))
        await tls.shake_hands()
        return cls(tls, is_client=True)

    def connect(self) -> int:
        """A CONNECT; returns its stream."""
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, [(":method", "CONNECT"), (":authority", AUTHORITY)])
        self._flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool) -> None:
        """Sends as the windows allow, now or later."""
        waiting, _ = self._unsent.get(stream, (b"", False))
        self._unsent[stream] = waiting + data, end
        self._advance()

    async def close(self) -> None:
        """Hangs up, and raises what the library had against the other end."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._tls.writer.transport.abort()
        if self.error is not None:
            raise self.error

    async def _read(self) -> None:
        try:
            while data := await self._tls.read():
                for event in self._http.receive_data(data):
                    self._hear(event)
                self._advance()
        except OSError:
            return
        except Exception as error:
            self.error = error
            self._flush()

    def _hear(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self._http.send_headers(event.stream_id, [(":status", "200")])
            case h2.events.ResponseReceived():
                self.statuses[event.stream_id] = dict(event.headers)[b":status"].decode()
            case h2.events.DataReceived():
                stream = event.stream_id
                self.bodies.setdefault(stream, bytearray()).extend(event.data)
                self._http.acknowledge_received_data(event.flow_controlled_length, stream)
                if self.responds:
                    self._echo(stream, event.data)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
                if self.responds:
                    self._echo(event.stream_id, b"", end=True)
            case _:
                pass

    def _echo(self, stream: int, data: bytes, *, end: bool = False) -> None:
        waiting, _ = self._unsent.get(stream, (b"", False))
        self._unsent[stream] = waiting + data, end

    def _advance(self) -> None:
        for stream in list(self._unsent):
            data, end = self._unsent.pop(stream)
            while data:
                room = min(
                    self._http.local_flow_control_window(stream),
                    self._http.max_outbound_frame_size,
                )
                if room <= 0:
                    break
                self._http.send_data(stream, data[:room])
                data = data[room:]
            if data:
                self._unsent[stream] = data, end
            elif end:
                self._http.end_stream(stream)
        self._flush()

    def _flush(self) -> None:
        if data := self._http.data_to_send():
            self._tls.write(data)
