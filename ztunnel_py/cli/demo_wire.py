# SPDX-License-Identifier: Apache-2.0
"""Reads what crossed the wire between the nodes: a capture, its TCP streams, their TLS records.

The judgement is strict: whatever is not a sequence of complete TLS records on the HBONE port is a
fault, and so is any packet of another TCP port.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from ztunnel_py.cli.topology import REPOSITORY, TopologyError, stop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from ztunnel_py.cli.topology import Namespace

HBONE_PORT = 15008
START_TIMEOUT_S = 5.0
QUIET_S = 0.1
QUIET_TIMEOUT_S = 2.0
RECORD_NAMES = {20: "change cipher spec", 21: "alert", 22: "handshake", 23: "application data"}
MAX_RECORD_BYTES = (1 << 14) + 256
MAX_FRAME_BYTES = 1 << 18  # segments are not yet cut to the size of the wire
_FILE_HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, MAX_FRAME_BYTES, 1)
_ALL_PROTOCOLS = 0x0003
_TCP = 6
_SYN = 0x02


class Capture:
    """Records the packets of the wire, from `with` to the end of its block."""

    def __init__(self, node: Namespace, path: Path) -> None:
        self._node = node
        self.path = path

    def __enter__(self) -> Self:
        """Starts and waits until packets are seen.

        Raises:
            TopologyError: the recorder did not start.
        """
        words = self.path.with_suffix(".err")
        argv = [sys.executable, "-m", "ztunnel_py.cli.demo_wire", "wire", str(self.path)]
        with words.open("w") as stderr:
            self._program = self._node.popen(argv, stderr=stderr, cwd=REPOSITORY)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.path.exists() or self.path.stat().st_size < len(_FILE_HEAD):
            if self._program.poll() is not None or time.monotonic() > deadline:
                raise TopologyError(f"the wire cannot be recorded: {words.read_text().strip()}")
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it once the wire is quiet; the file is then complete."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        size = -1
        while size != self.path.stat().st_size and time.monotonic() < deadline:
            size = self.path.stat().st_size
            time.sleep(QUIET_S)
        stop([self._program])


def record(interface: str, path: Path) -> None:
    """Writes all packets of an interface, both ways, to a pcap file until the program is ended.

    The file appears when recording has begun. tcpdump would do, but it insists on changing its
    user, which a user namespace with one user does not allow.
    """
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap,
        path.open("wb", buffering=0) as file,
    ):
        tap.bind((interface, _ALL_PROTOCOLS))
        file.write(_FILE_HEAD)
        while True:
            frame = tap.recv(MAX_FRAME_BYTES)
            at_us = time.time_ns() // 1000
            stamp = (at_us // 1_000_000, at_us % 1_000_000, len(frame), len(frame))
            file.write(struct.pack("<4I", *stamp) + frame)


class Segment(NamedTuple):
    """One TCP packet."""

    source: tuple[str, int]
    destination: tuple[str, int]
    sequence: int
    is_syn: bool
    payload: bytes


@dataclass(slots=True)
class Wire:
    """What was found."""

    packets: int = 0
    streams: int = 0  # directions of connections, with at least one byte
    payload_bytes: int = 0
    records: dict[str, int] = field(default_factory=dict)  # TLS records by name
    faults: list[str] = field(default_factory=list)


def inspect(capture: bytes, secret: bytes, control_port: int | None = None) -> Wire:
    """Judges a capture file.

    Args:
        capture: its bytes.
        secret: text that must not be readable in it.
        control_port: what else than HBONE may be there, as TLS: the control plane's.
    """
    allowed = {HBONE_PORT, control_port}
    wire = Wire()
    streams: dict[tuple[tuple[str, int], tuple[str, int]], list[Segment]] = {}
    others = set()
    for segment in segments(capture):
        wire.packets += 1
        streams.setdefault((segment.source, segment.destination), []).append(segment)
        if not allowed & {segment.source[1], segment.destination[1]}:
            ends = sorted(f"{host}:{port}" for host, port in (segment.source, segment.destination))
            others.add(" and ".join(ends))
    wire.faults += [f"TCP between {ends}: not the HBONE port" for ends in sorted(others)]
    for (source, destination), parts in streams.items():
        if any(secret in part.payload for part in parts):
            wire.faults.append(f"the request's secret is readable on its way to {destination[0]}")
        try:
            _add_stream(wire, assemble(parts))
        except ValueError as exc:
            way = f"{source[0]}:{source[1]} to {destination[0]}:{destination[1]}"
            wire.faults.append(f"{way} is not TLS: {exc}")
    if not wire.records.get("application data"):
        wire.faults.append("no TLS application data crossed the wire")
    return wire


def _add_stream(wire: Wire, text: bytes) -> None:
    wire.streams += bool(text)
    wire.payload_bytes += len(text)
    for name in records(text):
        wire.records[name] = wire.records.get(name, 0) + 1


def segments(capture: bytes) -> Iterator[Segment]:
    """The TCP packets of a capture file (pcap, Ethernet).

    Raises:
        ValueError: the file is of another kind.
    """
    if len(capture) < 24 or struct.unpack_from("<I", capture)[0] != 0xA1B2C3D4:
        raise ValueError("not a capture file with little-endian microseconds")
    if struct.unpack_from("<I", capture, 20)[0] != 1:
        raise ValueError("not a capture of Ethernet")
    at = 24
    while at + 16 <= len(capture):
        size = struct.unpack_from("<I", capture, at + 8)[0]
        frame = capture[at + 16 : at + 16 + size]
        at += 16 + size
        segment = _segment(frame)
        if segment is not None:
            yield segment


def _segment(frame: bytes) -> Segment | None:
    """Takes an Ethernet frame apart; None if it carries no TCP."""
    ethertype = struct.unpack_from("!H", frame, 12)[0]
    packet = frame[14:]
    if ethertype == 0x0800 and packet[9] == _TCP:
        header, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        addresses = packet[12:16], packet[16:20]
    elif ethertype == 0x86DD and packet[6] == _TCP:
        header, total = 40, 40 + int(struct.unpack_from("!H", packet, 4)[0])
        addresses = packet[8:24], packet[24:40]
    else:
        return None
    tcp = packet[header : total or None]  # a length of 0 is an offloaded packet over 64 KiB
    source_port, destination_port, sequence = struct.unpack_from("!HHI", tcp)
    source, destination = (str(ipaddress.ip_address(address)) for address in addresses)
    return Segment(
        source=(source, source_port),
        destination=(destination, destination_port),
        sequence=sequence,
        is_syn=bool(tcp[13] & _SYN),
        payload=tcp[(tcp[12] >> 4) * 4 :],
    )


def assemble(parts: Iterable[Segment]) -> bytes:
    """The bytes of one direction of a connection, in order, repeated ones once.

    Raises:
        ValueError: some are missing.
    """
    first = None
    pieces = []
    for part in parts:
        if first is None:
            first = part.sequence + part.is_syn
        if part.payload:
            pieces.append(((part.sequence + part.is_syn - first) & 0xFFFFFFFF, part.payload))
    text = bytearray()
    for offset, payload in sorted(pieces, key=lambda piece: piece[0]):
        if offset > len(text):
            raise ValueError(f"{offset - len(text)} bytes are missing from the capture")
        text += payload[len(text) - offset :]
    return bytes(text)


def records(text: bytes) -> Iterator[str]:
    """The names of the TLS records that the text is made of.

    Raises:
        ValueError: at the first byte that begins no complete TLS record.
    """
    at = 0
    while at < len(text):
        head = text[at : at + 5]
        kind, major, _minor, size = struct.unpack("!BBBH", head.ljust(5, b"\0"))
        if kind not in RECORD_NAMES or major != 3 or size > MAX_RECORD_BYTES:
            raise ValueError(f"byte {at} begins no TLS record: {text[at : at + 16]!r}")
        if at + 5 + size > len(text):
            raise ValueError(f"the record at byte {at} is cut off")
        yield RECORD_NAMES[kind]
        at += 5 + size


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]))
