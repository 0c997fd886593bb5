# SPDX-License-Identifier: Apache-2.0
"""Small programs for inside a pod: an echo server, a client that talks line by line.

apps.py echo PORT             prints `ready`, then echoes every connection
apps.py talk HOST PORT [SOCKS-PORT]
    connects (through SOCKS5 if asked), prints `connected`; each line of its input is sent and
    the answer printed; prints `closed` when the other side is gone
apps.py silent                prints the port that it took, then `connected` for each connection,
    and says nothing on any
apps.py silent-dns            prints `ready`, then `asked` for each query, and answers none
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
import threading


def echo(port: int) -> None:
    """Serves until killed."""
    server = socket.create_server(("", port))
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_echo_one, args=(connection,), daemon=True).start()


def _echo_one(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def talk(host: str, port: int, socks_port: int) -> None:
    """One conversation."""
    connection = socket.create_connection(("127.0.0.1", socks_port) if socks_port else (host, port))
    if socks_port:
        address = ipaddress.ip_address(host)
        kind = b"\x01" if address.version == 4 else b"\x04"
        connection.sendall(b"\x05\x01\x00")
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00" + kind + address.packed + port.to_bytes(2, "big"))
        assert connection.recv(10)[:2] == b"\x05\x00"
    print("connected", flush=True)
    try:
        for line in sys.stdin:
            connection.sendall(line.encode())
            data = connection.recv(65536)
            if not data:
                break
            print(data.decode().rstrip(), flush=True)
    except OSError:
        pass
    print("closed", flush=True)


def churn(host: str, port: int, count: int) -> None:
    """Connections that the server's side sees closed first by the client, as most are."""
    answered = 0
    for _ in range(count):
        try:
            with socket.create_connection((host, port), timeout=10) as connection:
                connection.sendall(b"hello")
                answered += connection.recv(5) == b"hello"
        except OSError as error:
            print(error, file=sys.stderr)
    print(json.dumps({"answered": answered, "failed": count - answered}))


def silent() -> None:
    """Accepts until killed."""
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    kept = []
    while True:
        kept.append(server.accept())
        print("connected", flush=True)


def silent_dns() -> None:
    """Reads queries until killed."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    print("ready", flush=True)
    while server.recv(4096):
        print("asked", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(int(sys.argv[2]))
    elif sys.argv[1] == "silent":
        silent()
    elif sys.argv[1] == "silent-dns":
        silent_dns()
    elif sys.argv[1] == "churn":
        churn(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        talk(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
