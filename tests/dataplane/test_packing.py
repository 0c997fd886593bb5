# SPDX-License-Identifier: Apache-2.0
"""The bytes that cross to the C core, read back here as core/key.h and core/verdict.h say."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel_py.dataplane.abc import QuestionKind
from ztunnel_py.dataplane.packing import (
    HopPacker,
    pack_address,
    pack_verdict,
    unpack_address,
    unpack_key,
)
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey, RemoteKey
from ztunnel_py.decide.verdict import (
    Action,
    Epoch,
    Hop,
    HopProtocol,
    LogFields,
    Preface,
    TrafficLabels,
    Verdict,
)
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from ztunnel_py.decide.key import Key
    from ztunnel_py.state.address import Ip

WORKLOAD = "ns/pod"
ADDRESS = SockAddr.parse("10.0.0.9:15008")
LABELS = TrafficLabels("source")
HOP = Hop(HopProtocol.TCP, ADDRESS, LABELS, LogFields())

latin1 = st.text(st.characters(max_codepoint=255), max_size=40)
ips = st.ip_addresses()
addresses = st.builds(SockAddr, ips, st.integers(0, 65535))
identities = st.builds(
    Identity, *[st.text(st.characters(codec="ascii", exclude_characters="/"), max_size=20)] * 3
)
hops = st.builds(
    Hop,
    st.sampled_from(HopProtocol),
    addresses,
    st.sampled_from([TrafficLabels("source"), TrafficLabels("destination")]),
    st.just(LogFields()),
    weight=st.integers(0, 2**32 - 1),
    authority=latin1,
    sans=st.lists(identities, max_size=3).map(tuple),
    keep_source=st.booleans(),
    inner_authority=latin1,
    inner_sans=st.lists(identities, max_size=3).map(tuple),
)
verdicts = st.builds(
    Verdict,
    st.sampled_from(Action),
    st.sampled_from(Reason),
    detail=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    hops=st.lists(hops, max_size=3).map(tuple),
    headers=st.lists(st.tuples(latin1, latin1), max_size=3).map(tuple),
    forwarded_host=latin1,
    preface=st.none() | st.builds(Preface, addresses),
    epoch=st.builds(Epoch, *[st.integers(0, 2**64 - 1)] * 2),
    uses_source=st.booleans(),
    uses_host=st.booleans(),
    uses_claims=st.booleans(),
    ttl_s=st.integers(0, 4_000_000).map(float),
)


class Reader:
    """Takes values off the front of packed bytes."""

    def __init__(self, packed: bytes) -> None:
        self._rest = packed

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """Little-endian numbers."""
        size = struct.calcsize("<" + layout)
        found = struct.unpack("<" + layout, self._rest[:size])
        self._rest = self._rest[size:]
        return found

    def text(self, encoding: str = "latin-1") -> str:
        """A str16."""
        (length,) = self.numbers("H")
        assert length <= len(self._rest)
        found, self._rest = self._rest[:length], self._rest[length:]
        return found.decode(encoding)

    def address(self) -> SockAddr:
        """A packed address."""
        family, raw, port = self.numbers("B16sH")
        if family == 4:
            assert not any(raw[4:])
            return SockAddr(ipaddress.IPv4Address(raw[:4]), port)
        assert family == 6
        return SockAddr(ipaddress.IPv6Address(raw), port)

    def identities(self) -> tuple[Identity, ...]:
        """A counted list."""
        (count,) = self.numbers("H")
        return tuple(Identity.parse(self.text()) for _ in range(count))

    def end(self) -> None:
        """Nothing follows."""
        assert not self._rest


def read_verdict(packed: bytes) -> Verdict:
    """A verdict as the core sees it; a slot stands for its label set."""
    reader = Reader(packed)
    action, reason, uses, has_preface, ttl_ms, *epoch = reader.numbers("BBBBIQQ")
    detail, forwarded_host = reader.text("utf-8"), reader.text()
    headers = tuple((reader.text(), reader.text()) for _ in range(*reader.numbers("H")))
    preface = Preface(reader.address()) if has_preface else None
    found = tuple(read_hop(reader) for _ in range(*reader.numbers("I")))
    reader.end()
    return Verdict(
        list(Action)[action],
        next(one for one in Reason if one.number == reason),
        detail,
        found,
        headers,
        forwarded_host,
        preface,
        epoch=Epoch(*epoch),
        uses_source=bool(uses & 1),
        uses_host=bool(uses & 2),
        uses_claims=bool(uses & 4),
        ttl_s=ttl_ms / 1000,
    )


def read_hop(reader: Reader) -> Hop:
    """One hop."""
    protocol, keep_source = reader.numbers("BB")
    address = reader.address()
    weight, slot = reader.numbers("II")
    return Hop(
        list(HopProtocol)[protocol],
        address,
        TrafficLabels(["source", "destination"][slot]),
        LogFields(),
        weight,
        reader.text(),
        reader.identities(),
        bool(keep_source),
        reader.text(),
        reader.identities(),
    )


def slot_of(labels: TrafficLabels) -> int:
    """As an engine would number them."""
    return ["source", "destination"].index(labels.reporter)


def packed_ip(ip: Ip) -> bytes:
    """Family and 16 bytes."""
    return bytes([ip.version]) + ip.packed.ljust(16, b"\0")


def packed_text(text: str) -> bytes:
    """A str16."""
    return struct.pack("<H", len(text)) + text.encode("latin-1")


def packed_baggage(baggage: tuple[str, ...] | None) -> bytes:
    """A counted list of texts."""
    count = -1 if baggage is None else len(baggage)
    return struct.pack("<h", count) + b"".join(map(packed_text, baggage or ()))


def packed_key(key: Key) -> bytes:
    """A key as the core packs it."""
    if isinstance(key, RemoteKey):
        identity = packed_text("" if key.identity is None else str(key.identity))
        return pack_address(key.dst) + identity + packed_baggage(key.baggage)
    if not isinstance(key, InboundKey):
        return packed_ip(key.src) + packed_ip(key.dst.ip) + struct.pack("<H", key.dst.port)
    return b"".join(
        (
            packed_ip(key.local),
            packed_ip(key.src),
            packed_text("" if key.identity is None else str(key.identity)),
            packed_text(key.authority),
            packed_text(key.forwarded_host),
            bytes([key.network is not None]),
            packed_text(key.network or ""),
            packed_baggage(key.baggage),
        )
    )


# --- addresses


@given(addresses)
def test_address_comes_back(address: SockAddr) -> None:
    assert unpack_address(pack_address(address)) == address


def test_no_address_is_none() -> None:
    assert unpack_address(bytes(19)) is None


@pytest.mark.parametrize("packed", [b"\x05" + bytes(18), b"\x04" + b"\x01" * 18], ids=["5", "tail"])
def test_malformed_address_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="not an address"):
        unpack_address(packed)


# --- keys


@given(st.builds(OutboundKey, st.just(WORKLOAD), ips, addresses))
def test_outbound_key_comes_back(key: OutboundKey) -> None:
    assert unpack_key(QuestionKind.OUTBOUND, WORKLOAD, packed_key(key)) == key


def test_passthrough_key_is_one() -> None:
    key = PassthroughKey(WORKLOAD, ADDRESS.ip, ADDRESS)

    found = unpack_key(QuestionKind.PASSTHROUGH, WORKLOAD, packed_key(key))

    assert isinstance(found, PassthroughKey)
    assert found == key


@given(
    st.builds(
        InboundKey,
        st.just(WORKLOAD),
        ips,
        ips,
        st.none() | identities,
        latin1,
        latin1,
        st.none() | latin1,
        st.none() | st.lists(latin1, max_size=3).map(tuple),
    )
)
def test_inbound_key_comes_back(key: InboundKey) -> None:
    assert unpack_key(QuestionKind.INBOUND, WORKLOAD, packed_key(key)) == key


@given(
    st.builds(
        RemoteKey,
        st.just(WORKLOAD),
        addresses,
        st.none() | identities,
        st.none() | st.lists(latin1, max_size=3).map(tuple),
    )
)
def test_remote_key_comes_back(key: RemoteKey) -> None:
    packed = packed_key(key)

    assert unpack_key(QuestionKind.REMOTE, WORKLOAD, packed) == key
    for malformed in (packed + b"\0", packed[:-1]):
        with pytest.raises(ValueError):
            unpack_key(QuestionKind.REMOTE, WORKLOAD, malformed)


def test_identity_question_has_no_key() -> None:
    assert unpack_key(QuestionKind.IDENTITY, WORKLOAD, b"") is None


FULL = packed_key(InboundKey(WORKLOAD, ADDRESS.ip, ADDRESS.ip, None, "a", baggage=("b",)))


@pytest.mark.parametrize("length", range(len(FULL)))
def test_key_that_ends_too_early_is_refused(length: int) -> None:
    with pytest.raises(ValueError):
        unpack_key(QuestionKind.INBOUND, WORKLOAD, FULL[:length])


@pytest.mark.parametrize("kind", [QuestionKind.INBOUND, QuestionKind.OUTBOUND])
def test_key_that_goes_on_is_refused(kind: QuestionKind) -> None:
    key = OutboundKey(WORKLOAD, ADDRESS.ip, ADDRESS)
    packed = FULL if kind is QuestionKind.INBOUND else packed_key(key)

    with pytest.raises(ValueError):
        unpack_key(kind, WORKLOAD, packed + b"\0")


def test_identity_that_is_none_is_refused() -> None:
    packed = FULL.replace(packed_text(""), packed_text("spiffe://td/ns"), 1)

    with pytest.raises(ValueError):
        unpack_key(QuestionKind.INBOUND, WORKLOAD, packed)


# --- verdicts


@given(verdicts)
def test_verdict_comes_back(verdict: Verdict) -> None:
    assert read_verdict(pack_verdict(verdict, HopPacker(slot_of))) == verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"forwarded_host": "\N{SNOWMAN}"},
        {"forwarded_host": "a" * 65536},
        {"headers": (("baggage", "\N{SNOWMAN}"),)},
        {"hops": (Hop(HopProtocol.TCP, ADDRESS, LABELS, LogFields(), weight=-1),)},
        {"hops": (Hop(HopProtocol.TCP, ADDRESS, LABELS, LogFields(), weight=2**32),)},
        {"hops": (Hop(HopProtocol.TCP, SockAddr(ADDRESS.ip, 65536), LABELS, LogFields()),)},
        {"hops": (Hop(HopProtocol.HBONE, ADDRESS, LABELS, LogFields(), 1, "\N{SNOWMAN}"),)},
        {"epoch": Epoch(2**64, 0)},
        {"ttl_s": float("inf")},
        {"ttl_s": -1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_value_that_does_not_fit_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        pack_verdict(Verdict(Action.FORWARD, **{"hops": (HOP,)} | changes), HopPacker(slot_of))


def test_identity_that_does_not_fit_is_an_error() -> None:
    hop = Hop(
        HopProtocol.HBONE, ADDRESS, LABELS, LogFields(), sans=(Identity("td", "\N{SNOWMAN}", "a"),)
    )

    with pytest.raises(ValueError, match="latin-1"):
        pack_verdict(Verdict(Action.FORWARD, hops=(hop,)), HopPacker(slot_of))


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("\N{SNOWMAN}", "\N{SNOWMAN}"),
        ("a\0b", "a\\0b"),
        ("\udcff", "\\udcff"),
        ("a" * 70_000, "a" * 65_535),
    ],
    ids=["unicode", "nul", "surrogate", "long"],
)
def test_detail_is_readable_whatever_is_in_it(detail: str, shown: str) -> None:
    packed = pack_verdict(Verdict.deny(Reason.NO_ROUTE, detail), HopPacker(slot_of))

    assert read_verdict(packed).detail == shown


def test_verdict_that_holds_for_longer_than_can_be_said_holds_as_long_as_can_be_said() -> None:
    packed = pack_verdict(Verdict(Action.FORWARD, hops=(HOP,), ttl_s=1e9), HopPacker(slot_of))

    assert read_verdict(packed).ttl_s == (2**32 - 1) / 1000


def test_long_lists_of_hops_are_packed_once_and_never_confused() -> None:
    asked: list[TrafficLabels] = []

    def counted(labels: TrafficLabels) -> int:
        asked.append(labels)
        return slot_of(labels)

    packer = HopPacker(counted)
    lists = [tuple(replace(HOP, weight=n) for _ in range(100)) for n in range(300)]

    packed = [packer.pack(hops) for hops in lists]
    again = [packer.pack(hops) for hops in lists[-100:]]

    assert again == packed[-100:]
    assert len(asked) == 300 * 100
    assert len(set(packed)) == 300
    assert packer.pack(lists[0]) == packed[0]
