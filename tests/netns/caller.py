# SPDX-License-Identifier: Apache-2.0
"""Makes connections inside a pod, as it is told line by line: plain, in TLS, or HBONE by hand.

Each line of its input is a JSON object: `do` names a method of `Caller`, `id` a connection, the
rest are arguments; each is answered by one line. Bytes are hexadecimal.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from typing import Any

import h2.config
import h2.connection
import h2.events

Answer = dict[str, Any]
_CHUNK = 1 << 16


class Caller:
    """The connections of one pod."""

    def __init__(self) -> None:
        self._socks: dict[int, socket.socket] = {}
        self._sessions: dict[int, h2.connection.H2Connection] = {}

    def dial(self, id: int, host: str, port: int, wait_s: float) -> Answer:
        """Connects."""
        sock = socket.create_connection((host, port), timeout=wait_s)
        self._socks[id] = sock
        return {"local": sock.getsockname()[:2]}

    def datagram(self, host: str, port: int, data: str, wait_s: float) -> Answer:
        """Sends one and waits for the answer; it says from whom."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(wait_s)
            sock.sendto(bytes.fromhex(data), (host, port))
            found, source = sock.recvfrom(_CHUNK)
        return {"data": found.hex(), "source": source[:2]}

    def queries(self, host: str, port: int, data: str, seconds: float) -> Answer:
        """Sends a datagram as soon as the one before is answered, each from a port of its own."""
        n_answered, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            self.datagram(host, port, data, 2.0)
            n_answered += 1
        return {"answered": n_answered}

    def tls(self, id: int, pem: str, alpn: str, wait_s: float) -> Answer:
        """Shakes hands; whoever answers is believed. Without `pem` no certificate is shown."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols([alpn])
        if pem:
            context.load_cert_chain(pem)
        self._socks[id].settimeout(wait_s)
        self._socks[id] = context.wrap_socket(self._socks[id], suppress_ragged_eofs=True)
        return {}

    def send(self, id: int, data: str) -> Answer:
        """Sends bytes."""
        self._socks[id].settimeout(5)
        self._socks[id].sendall(bytes.fromhex(data))
        return {}

    def read(self, id: int, n: int, wait_s: float) -> Answer:
        """Reads `n` bytes, or until an end; it says which."""
        found = b""
        sock, deadline = self._socks[id], time.monotonic() + wait_s
        while len(found) < n:
            try:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = sock.recv(min(_CHUNK, n - len(found)))
            except TimeoutError:
                return {"data": found.hex(), "ended": "silence"}
            except ConnectionError:
                return {"data": found.hex(), "ended": "reset"}
            except ssl.SSLError as error:
                return {"data": found.hex(), "ended": error.reason or "tls"}
            if not data:
                return {"data": found.hex(), "ended": "fin"}
            found += data
        return {"data": found.hex(), "ended": ""}

    def end(self, id: int) -> Answer:
        """Says that nothing more will come."""
        self._socks[id].shutdown(socket.SHUT_WR)
        return {}

    def close(self, id: int) -> Answer:
        """Hangs up, unless that was done."""
        if id in self._socks:
            self._socks.pop(id).close()
        self._sessions.pop(id, None)
        return {}

    def request(self, id: int, headers: list[list[str]], wait_s: float) -> Answer:
        """Opens a stream with these headers; its status, or how the connection ended instead."""
        session = self._sessions.get(id)
        if session is None:
            config = h2.config.H2Configuration(
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
            session = self._sessions[id] = h2.connection.H2Connection(config)
            session.initiate_connection()
        stream = session.get_next_available_stream_id()
        session.send_headers(stream, [(name, value) for name, value in headers])
        self._socks[id].settimeout(wait_s)
        self._socks[id].sendall(session.data_to_send())
        return self._response(id, session, stream)

    def _response(self, id: int, session: h2.connection.H2Connection, stream: int) -> Answer:
        sock = self._socks[id]
        while True:
            try:
                data = sock.recv(_CHUNK)
            except TimeoutError:
                return {"ended": "silence"}
            except ssl.SSLError as error:
                return {"ended": error.reason or "tls"}
            if not data:
                return {"ended": "fin"}
            for event in session.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream:
                    return {"status": dict(event.headers or ())[b":status"].decode()}
                if isinstance(event, h2.events.StreamReset) and event.stream_id == stream:
                    return {"ended": f"stream reset {event.error_code}"}
                if isinstance(event, h2.events.ConnectionTerminated):
                    return {"ended": f"goaway {event.error_code}"}
            if out := session.data_to_send():
                sock.sendall(out)


def main() -> None:
    """Answers until its input ends."""
    caller = Caller()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(caller, request.pop("do"))(**request)
        except OSError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
