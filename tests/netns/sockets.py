# SPDX-License-Identifier: Apache-2.0
"""Sockets inside a pod, run as a program there.

`serve` accepts and tells, `dial` connects once, `knock` again and again. It uses the standard
library only and prints one JSON object per event. What it learns is what a proxy in that pod would
learn.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import selectors
import socket
import struct
from typing import Any

SO_MARK = 36
SO_ORIGINAL_DST = 80
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
TIMEOUT_S = 1.0
RESOLVER_PORT = 53


def show(**fields: object) -> None:
    """Prints an event."""
    print(json.dumps(fields), flush=True)


def plain(address: tuple[Any, ...]) -> list[object]:
    """Host and port, with IPv4 in its own form."""
    return [str(address[0]).removeprefix("::ffff:"), address[1]]


def original_destination(conn: socket.socket) -> list[object]:
    """Where the connection went before redirection; its local address if nobody tracks it."""
    for level, size, family in (
        (socket.SOL_IP, 16, socket.AF_INET),
        (socket.IPPROTO_IPV6, 28, socket.AF_INET6),
    ):
        with contextlib.suppress(OSError):
            raw = conn.getsockopt(level, SO_ORIGINAL_DST, size)
            host = raw[4:8] if family == socket.AF_INET else raw[8:24]
            return [socket.inet_ntop(family, host), struct.unpack("!H", raw[2:4])[0]]
    return plain(conn.getsockname())


def listener(port: int) -> socket.socket:
    """An unmarked listener on all addresses of both families."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    sock.listen(16)
    return sock


def receivers(port: int) -> list[socket.socket]:
    """UDP sockets: the resolver's on any address, others on loopback, where redirection leads."""
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    four.bind(("" if port == RESOLVER_PORT else "127.0.0.1", port))
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    six.bind(("::" if port == RESOLVER_PORT else "::1", port))
    return [four, six]


def serve(tcp_ports: list[int], udp_ports: list[int]) -> None:
    """Answers every connection and datagram with the number of the port that got it."""
    ready = selectors.DefaultSelector()
    for port in tcp_ports:
        ready.register(listener(port), selectors.EVENT_READ, port)
    for port in udp_ports:
        for receiver in receivers(port):
            ready.register(receiver, selectors.EVENT_READ, port)
    show(event="ready")
    while True:
        for key, _ in ready.select():
            sock, port = key.fileobj, int(key.data)
            assert isinstance(sock, socket.socket)
            if sock.type == socket.SOCK_DGRAM:
                _, source = sock.recvfrom(2048)
                sock.sendto(str(port).encode(), source)
                show(event="udp", port=port, source=plain(source))
                continue
            conn, source = sock.accept()
            with conn:
                conn.sendall(str(port).encode())
                show(
                    event="tcp",
                    port=port,
                    source=plain(source),
                    wanted=original_destination(conn),
                )


def dial(host: str, port: int, *, source: str, mark: int, udp: bool) -> None:
    """Connects, optionally as a proxy does: with a mark, from somebody else's address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(TIMEOUT_S)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        if source:
            level, option = (
                (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
                if family == socket.AF_INET6
                else (socket.SOL_IP, IP_TRANSPARENT)
            )
            sock.setsockopt(level, option, 1)
            sock.bind((source, 0))
        try:
            sock.connect((host, port))
            if udp:
                sock.send(b"?")
            answer = sock.recv(16).decode()
            remote = plain(sock.getpeername())
            show(answered=int(answer or 0), local=plain(sock.getsockname()), remote=remote)
        except OSError as exc:
            show(error=type(exc).__name__)


def knock(host: str, port: int, times: int) -> None:
    """Connects again and again, and counts who answered."""
    answers: collections.Counter[str] = collections.Counter()
    for _ in range(times):
        try:
            with socket.create_connection((host, port), TIMEOUT_S) as sock:
                answers[sock.recv(16).decode()] += 1
        except OSError as exc:
            answers[type(exc).__name__] += 1
    show(**answers)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(dest="mode", required=True)
    server = modes.add_parser("serve")
    server.add_argument("--tcp", type=int, nargs="*", default=[])
    server.add_argument("--udp", type=int, nargs="*", default=[])
    client = modes.add_parser("dial")
    client.add_argument("host")
    client.add_argument("port", type=int)
    client.add_argument("--source", default="")
    client.add_argument("--mark", type=int, default=0)
    client.add_argument("--udp", action="store_true")
    knocker = modes.add_parser("knock")
    knocker.add_argument("host")
    knocker.add_argument("port", type=int)
    knocker.add_argument("--times", type=int, required=True)
    args = parser.parse_args()
    if args.mode == "serve":
        serve(args.tcp, args.udp)
    elif args.mode == "knock":
        knock(args.host, args.port, args.times)
    else:
        dial(args.host, args.port, source=args.source, mark=args.mark, udp=args.udp)


if __name__ == "__main__":
    main()
