# SPDX-License-Identifier: Apache-2.0
"""An application inside a pod: it says who it is, echoes, and prints who came.

app.py NAME [--echo PORT ...] [--relay PORT HOST:PORT] [--waypoint PORT]
    echo: a greeting of 32 bytes, name and port, and then what it is sent
    relay: passes connections on to another address
    waypoint: expects a PROXY v2 header and passes on to the address that it names
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import ipaddress
import json
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GREETING_SIZE = 32
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
_PROXY, _IPV4, _UNSPECIFIED = 0x21, 0x11, 0x01
_CHUNK = 1 << 16


def show(**fields: object) -> None:
    """Prints an event."""
    print(json.dumps(fields), flush=True)


def serve(port: int, what: Callable[[socket.socket], None]) -> None:
    """Gives each connection to `what`, in a thread of its own."""
    server = socket.create_server(
        ("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True
    )

    def one(conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            what(conn)

    def accept() -> None:
        while True:
            conn, source = server.accept()
            host = source[0].removeprefix("::ffff:")
            show(event="tcp", port=port, source=[host, source[1]])
            threading.Thread(target=one, args=(conn,), daemon=True).start()

    threading.Thread(target=accept).start()


def echo(name: str, port: int) -> Callable[[socket.socket], None]:
    """Greets and echoes."""
    greeting = f"{name}:{port}".ljust(GREETING_SIZE).encode()

    def one(conn: socket.socket) -> None:
        conn.sendall(greeting)
        while data := conn.recv(_CHUNK):
            conn.sendall(data)

    return one


def relay(conn: socket.socket, to: tuple[str, int]) -> None:
    """Passes on both ways, ends included."""
    with socket.create_connection(to, timeout=10) as there:
        there.settimeout(None)
        back = threading.Thread(target=shovel, args=(there, conn), daemon=True)
        back.start()
        shovel(conn, there)
        back.join()


def shovel(source: socket.socket, sink: socket.socket) -> None:
    """One direction."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def waypoint(conn: socket.socket) -> None:
    """Reads the PROXY header, prints it, and goes where it says."""
    head = exactly(conn, 16)
    signature, version, family, size = head[:12], head[12], head[13], head[14:]
    body = exactly(conn, struct.unpack("!H", size)[0])
    assert (signature, version) == (SIGNATURE, _PROXY), head.hex()
    if family == _UNSPECIFIED:
        show(event="proxy", source=None, destination=None, tlvs=tlvs(body))
        return
    assert family == _IPV4, head.hex()
    src, dst = (str(ipaddress.IPv4Address(body[i : i + 4])) for i in (0, 4))
    src_port, dst_port = struct.unpack("!HH", body[8:12])
    addresses = {"source": f"{src}:{src_port}", "destination": f"{dst}:{dst_port}"}
    show(event="proxy", **addresses, tlvs=tlvs(body[12:]))
    relay(conn, (dst, dst_port))


def tlvs(data: bytes) -> list[tuple[int, str]]:
    """What follows the addresses in a PROXY header."""
    found = []
    while data:
        kind, length = struct.unpack("!BH", data[:3])
        found.append((kind, data[3 : 3 + length].decode()))
        data = data[3 + length :]
    return found


def exactly(conn: socket.socket, n: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < n:
        more = conn.recv(n - len(data))
        if not more:
            raise ConnectionError("ended within the header")
        data += more
    return data


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--echo", type=int, nargs="*", default=[])
    parser.add_argument("--relay", nargs=2, action="append", default=[])
    parser.add_argument("--waypoint", type=int, nargs="*", default=[])
    args = parser.parse_args()
    for port in args.echo:
        serve(port, echo(args.name, port))
    for port, to in args.relay:
        host, _, number = to.rpartition(":")
        serve(int(port), functools.partial(relay, to=(host, int(number))))
    for port in args.waypoint:
        serve(port, waypoint)
    show(event="ready")


if __name__ == "__main__":
    main()
