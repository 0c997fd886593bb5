# SPDX-License-Identifier: Apache-2.0
"""The judgement of the capture, on packets made here."""

from __future__ import annotations

import socket
import struct

import pytest

from ztunnel_py.cli.demo_wire import assemble, inspect, records, segments

HELLO = b"\x16\x03\x01\x00\x05hello"
DATA = b"\x17\x03\x03\x00\x04data"
SECRET = b"open sesame"
A, B = ("10.0.0.1", 40000), ("10.0.0.2", 15008)


def packet(
    source: tuple[str, int],
    destination: tuple[str, int],
    sequence: int,
    payload: bytes = b"",
    *,
    syn: bool = False,
) -> bytes:
    """An Ethernet frame with one TCP segment over IPv4 or IPv6."""
    flags = 0x02 if syn else 0x10
    tcp = struct.pack("!HHIIBBHHH", source[1], destination[1], sequence, 0, 80, flags, 0, 0, 0)
    if ":" in source[0]:
        ends = b"".join(socket.inet_pton(socket.AF_INET6, end[0]) for end in (source, destination))
        head = struct.pack("!IHBB", 6 << 28, len(tcp + payload), 6, 64) + ends
        return b"\0" * 12 + b"\x86\xdd" + head + tcp + payload
    ends = b"".join(socket.inet_aton(end[0]) for end in (source, destination))
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0) + ends
    padding = b"\0" * max(0, 6 - len(payload))  # short frames are padded
    return b"\0" * 12 + b"\x08\x00" + head + tcp + payload + padding


def capture(*frames: bytes) -> bytes:
    """A pcap file."""
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(
        struct.pack("<4I", 0, 0, len(frame), len(frame)) + frame for frame in frames
    )


def test_tls_on_the_hbone_port_has_no_fault() -> None:
    wire = inspect(
        capture(packet(A, B, 99, syn=True), packet(A, B, 100, HELLO + DATA), packet(B, A, 7, DATA)),
        SECRET,
    )

    assert wire.faults == []
    assert wire.records == {"handshake": 1, "application data": 2}
    assert wire.streams == 2


def test_ipv6_is_read_too() -> None:
    wire = inspect(capture(packet(("fd77::1", 40000), ("fd77::2", 15008), 5, DATA)), SECRET)

    assert wire.faults == []


def test_another_port_is_a_fault() -> None:
    wire = inspect(capture(packet(A, B, 1, DATA), packet(A, ("10.0.0.2", 80), 1, syn=True)), SECRET)

    assert wire.faults == ["TCP between 10.0.0.1:40000 and 10.0.0.2:80: not the HBONE port"]


def test_plaintext_on_the_hbone_port_is_a_fault() -> None:
    wire = inspect(capture(packet(A, B, 1, DATA + b"GET / HTTP/1.1")), SECRET)

    assert len(wire.faults) == 1
    assert "byte 9 begins no TLS record" in wire.faults[0]


def test_a_readable_secret_is_a_fault_even_inside_a_record() -> None:
    record = b"\x17\x03\x03\x00\x0b" + SECRET

    wire = inspect(capture(packet(A, B, 1, record)), SECRET)

    assert wire.faults == ["the request's secret is readable on its way to 10.0.0.2"]


def test_an_empty_wire_is_a_fault() -> None:
    assert inspect(capture(), SECRET).faults == ["no TLS application data crossed the wire"]


def test_bytes_missing_from_the_capture_are_a_fault() -> None:
    wire = inspect(capture(packet(A, B, 1, DATA), packet(A, B, 20, DATA)), SECRET)

    assert "10 bytes are missing from the capture" in wire.faults[0]


def test_repeated_and_reordered_segments_are_put_in_order() -> None:
    parts = segments(
        capture(
            packet(A, B, 0xFFFFFFFE, syn=True),
            packet(A, B, 2, b"cdef"),
            packet(A, B, 0xFFFFFFFF, b"_ab"),
            packet(A, B, 1, b"bcd"),
        )
    )

    assert assemble(parts) == b"_abcdef"


@pytest.mark.parametrize(
    "text", [DATA[:-1], DATA[:3], b"\x17\x03\x03\xff\xff", b"\x18\x03\x03\0\0"]
)
def test_what_is_no_complete_record_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="byte 0"):
        list(records(text))


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(ValueError, match="not a capture"):
        list(segments(b"\x0a\x0d\x0d\x0a" + b"\0" * 40))
