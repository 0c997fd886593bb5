# SPDX-License-Identifier: Apache-2.0
"""Writes the corpora that the fuzzers begin with: `python seeds.py`."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def text(value: str) -> bytes:
    """A str16."""
    return struct.pack("<H", len(value)) + value.encode()


def ip(value: str) -> bytes:
    """A packed address without its port."""
    address = ipaddress.ip_address(value)
    return bytes([address.version]) + address.packed.ljust(16, b"\0")


def address(value: str, port: int) -> bytes:
    """A packed address."""
    return ip(value) + struct.pack("<H", port)


def sans(*names: str) -> bytes:
    """A list of identities."""
    return struct.pack("<H", len(names)) + b"".join(map(text, names))


def hop(protocol: int, slot: int, authority: str = "", inner: str = "") -> bytes:
    """One hop; an inner authority comes with an inner identity."""
    return (
        bytes([protocol, 0])
        + address("10.1.1.5", 15008)
        + struct.pack("<II", 1, slot)
        + text(authority)
        + (sans("spiffe://td/ns/b/sa/b") if protocol else sans())
        + text(inner)
        + (sans("spiffe://td/ns/c/sa/c") if inner else sans())
    )


def verdict(action: int, reason: int, *hops: bytes, preface: bool = False) -> bytes:
    """A whole verdict."""
    return (
        bytes([action, reason, 7, preface])
        + struct.pack("<IQQ", 1000, 812, 3)
        + text("detail")
        + text("shop.example")
        + struct.pack("<H", 1)
        + text("baggage")
        + text("k8s.cluster.name=Kubernetes")
        + (address("10.96.0.10", 80) if preface else b"")
        + struct.pack("<I", len(hops))
        + b"".join(hops)
    )


def inbound(host: str, network: str | None, *baggage: str) -> bytes:
    """A key of a CONNECT."""
    return (
        ip("10.1.1.5")
        + ip("fd00::1")
        + text("spiffe://td/ns/a/sa/a")
        + text("10.1.1.5:8080")
        + text(host)
        + bytes([network is not None])
        + text(network or "")
        + struct.pack("<H", len(baggage))
        + b"".join(map(text, baggage))
    )


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header that is not indexed."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = frame(4, 0, 0, struct.pack(">HIHI", 4, 1 << 20, 5, 1 << 20))
CONNECT = literal(":method", "CONNECT") + literal(":authority", "10.1.1.5:8080")
OPEN = frame(1, 4, 1, CONNECT + literal("baggage", "k=v"))
OK = frame(1, 4, 1, b"\x88")
DATA = frame(0, 0, 1, b"data")

SEEDS: dict[str, dict[str, bytes]] = {
    "key": {
        "outbound": b"\x00\x07" + ip("10.1.1.5") + address("10.96.0.10", 80),
        "inbound": b"\x01\x00" + inbound("shop.example", "net2", "k=v", ""),
        "inbound_plain": b"\x01\x07" + inbound("", None),
        "passthrough": b"\x02\x01" + ip("fd00::1") + address("fd00::2", 80),
        "identity": b"\x03\x00",
        "forwarded": b"\x00\x01" + b'for="10.0.0.1:5";host="shop.example" ;proto=http',
        "request": b"\x00\x01spiffe://a\n10.1.1.5:80\nfor=x;host=b\nnet2\nk=v\nl=w",
    },
    "request": {
        "usual": b"\x01\x46CONNECT\nG10.1.1.5:80\nHfor=x;host=b\nJk=v\nJl=w",
        "traced": b"\x00N00-" + b"1f" * 16 + b"-" + b"e0" * 8 + b"-01\nNx",
        "foreign": b"\x00GX\nGY\nIn\nIm\nH\n\nJ\n",
    },
    "h2": {
        "served": b"\0\1" + MAGIC + SETTINGS + OPEN + DATA + frame(0, 1, 1),
        "served_greeted": b"\2\2" + OPEN + DATA + frame(3, 0, 1, struct.pack(">I", 8)),
        "served_silent": b"\6\3" + OPEN + DATA + frame(8, 0, 1, struct.pack(">I", 9)),
        "served_odd": b"\2\4" + frame(1, 0, 3, CONNECT[:9]) + frame(9, 4, 3, CONNECT[9:]),
        "asked": b"\1\1" + SETTINGS + OK + DATA + frame(0, 1, 1) + frame(1, 5, 3, b"\x8d"),
        "asked_away": b"\3\2" + OK + frame(7, 0, 0, struct.pack(">II", 1, 0)) + DATA,
        "asked_ping": b"\3\3" + frame(6, 0, 0, bytes(8)) + frame(8, 0, 0, bytes(3) + b"\1"),
    },
    "verdict": {
        "forward": verdict(0, 0, hop(0, 1), hop(1, 41, "10.1.1.5:8080")),
        "double": verdict(0, 0, hop(2, 7, "gateway:15008", "shop.example:80")),
        "preface": verdict(0, 0, hop(0, 1), preface=True),
        "deny_early": verdict(1, 5),
        "deny_recorded": verdict(1, 19, hop(0, 3)),
        "punt": verdict(2, 0),
    },
}


def main() -> None:
    """Writes every seed to its file."""
    for corpus, seeds in SEEDS.items():
        folder = CORPUS / corpus
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
