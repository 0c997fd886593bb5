# SPDX-License-Identifier: Apache-2.0
"""Keys, verdicts and addresses as the bytes that cross to the C core.

The formats are those of core/addr.h, core/key.h and core/verdict.h. What is said on the wire
crosses as latin-1, byte for byte; what only people read, as UTF-8. A value that does not fit is an
error, never cut or changed (but for the detail of a refusal, which is for people).
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from typing import TYPE_CHECKING

from ztunnel_py.dataplane.abc import Direction, QuestionKind
from ztunnel_py.decide.key import InboundKey, OutboundKey, PassthroughKey, RemoteKey
from ztunnel_py.decide.verdict import Action, HopProtocol
from ztunnel_py.errors import Flag
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ztunnel_py.decide.key import Key
    from ztunnel_py.decide.verdict import Hop, TrafficLabels, Verdict
    from ztunnel_py.state.address import Ip

QUESTION_KINDS = (
    QuestionKind.OUTBOUND,
    QuestionKind.INBOUND,
    QuestionKind.PASSTHROUGH,
    QuestionKind.IDENTITY,
    QuestionKind.REMOTE,
)
"""By their numbers in `enum key_kind`."""
PROTOCOLS = (HopProtocol.TCP, HopProtocol.HBONE, HopProtocol.DOUBLE_HBONE)
"""By their numbers in `enum hop_protocol`."""
DIRECTIONS = {True: Direction.INBOUND, False: Direction.OUTBOUND}
"""By whether it is inbound."""
NOWHERE = SockAddr(ipaddress.IPv4Address(0), 0)
"""Stands for an address that is not there."""
FLAGS = tuple(Flag)
"""By their columns among the counters."""

_ACTIONS = {Action.FORWARD: 0, Action.DENY: 1, Action.PUNT: 2}
_PROTOCOLS = {protocol: number for number, protocol in enumerate(PROTOCOLS)}
_USES_SOURCE, _USES_HOST, _USES_CLAIMS = 1, 2, 4
_MANY_HOPS, _LISTS_KEPT = 16, 128
_U16, _U32 = 2**16 - 1, 2**32 - 1

_ADDRESS = struct.Struct("<B16sH")
_CAPTURED = struct.Struct("<17s17sH")  # src ip, dst ip, dst port
_DESTINATION = struct.Struct("<17sH")
_IP_SIZE = 17
_HEAD = struct.Struct("<BBBBIQQ")  # action, reason, uses, has preface, ttl ms, epochs
_HOP = struct.Struct("<BBB16sHII")  # protocol, keep source, address, weight, slot
_COUNT = struct.Struct("<H")
_HOPS = struct.Struct("<I")
_BAGGAGE = struct.Struct("<h")
_NOTHING = _COUNT.pack(0)


# --- addresses


def pack_address(address: SockAddr) -> bytes:
    """Family, ip and port."""
    ip = address.ip
    return _ADDRESS.pack(ip.version, ip.packed, address.port)


def unpack_address(packed: bytes) -> SockAddr | None:
    """The address; None for the family "none".

    Raises:
        ValueError: neither IPv4 nor IPv6.
    """
    if not packed[0]:
        return None
    return SockAddr(_ip(packed[:_IP_SIZE]), packed[17] | packed[18] << 8)


unpack_known = functools.lru_cache(maxsize=16_384)(unpack_address)
"""The same, for addresses that come again and again: all but those of clients."""


@functools.lru_cache(maxsize=16_384)
def _ip(packed: bytes) -> Ip:
    if packed[0] == 4 and not any(packed[5:]):
        return ipaddress.IPv4Address(packed[1:5])
    if packed[0] == 6:
        return ipaddress.IPv6Address(packed[1:_IP_SIZE])
    raise ValueError(f"not an address: {packed.hex()}")


# --- keys


def unpack_key(kind: QuestionKind, workload: str, packed: bytes) -> Key | None:
    """The key of a question; None for IDENTITY.

    Raises:
        ValueError: the bytes are not such a key.
    """
    match kind:
        case QuestionKind.INBOUND:
            return _unpack_request(workload, packed)
        case QuestionKind.REMOTE:
            return _unpack_remote(workload, packed)
        case QuestionKind.IDENTITY:
            return None
        case _:
            if len(packed) != _CAPTURED.size:
                raise ValueError(f"a key of {len(packed)} bytes")
            src, ip, port = _CAPTURED.unpack(packed)
            key = OutboundKey if kind is QuestionKind.OUTBOUND else PassthroughKey
            return key(workload, _ip(src), SockAddr(_ip(ip), port))


def _unpack_request(workload: str, packed: bytes) -> InboundKey:
    try:
        identity, at = _unpack_text(packed, 2 * _IP_SIZE)
        authority, at = _unpack_text(packed, at)
        forwarded_host, at = _unpack_text(packed, at)
        has_network = packed[at]
        network, at = _unpack_text(packed, at + 1)
        baggage = _unpack_baggage(packed, at)
    except (struct.error, IndexError) as error:
        raise ValueError("a key that ends too early") from error
    return InboundKey(
        workload=workload,
        local=_ip(packed[:_IP_SIZE]),
        src=_ip(packed[_IP_SIZE : 2 * _IP_SIZE]),
        identity=_identity(identity) if identity else None,
        authority=authority,
        forwarded_host=forwarded_host,
        network=network if has_network else None,
        baggage=baggage,
    )


def _unpack_remote(workload: str, packed: bytes) -> RemoteKey:
    try:
        (ip, port) = _DESTINATION.unpack_from(packed)
        identity, at = _unpack_text(packed, _DESTINATION.size)
        baggage = _unpack_baggage(packed, at)
    except (struct.error, IndexError) as error:
        raise ValueError("a key that ends too early") from error
    proved = _identity(identity) if identity else None
    return RemoteKey(workload, SockAddr(_ip(ip), port), proved, baggage)


_identity = functools.lru_cache(maxsize=16_384)(Identity.parse)


def _unpack_baggage(packed: bytes, at: int) -> tuple[str, ...] | None:
    """The values at an offset, behind which nothing may come."""
    (count,) = _BAGGAGE.unpack_from(packed, at)
    at += _BAGGAGE.size
    values = []
    for _ in range(count):
        value, at = _unpack_text(packed, at)
        values.append(value)
    if at != len(packed):
        raise ValueError(f"a key with {len(packed) - at} bytes too many")
    return None if count < 0 else tuple(values)


def _unpack_text(packed: bytes, at: int) -> tuple[str, int]:
    """The text at an offset, and where it ends."""
    (length,) = _COUNT.unpack_from(packed, at)
    end = at + _COUNT.size + length
    if end > len(packed):
        raise IndexError
    return packed[at + _COUNT.size : end].decode("latin-1"), end


# --- verdicts


class HopPacker:
    """Hops as bytes.

    Long lists are remembered by what they are, not by what they say: those of a service come again
    with every push, since decisions keep them (decide/outbound.py).

    Args:
        slot_of: names the counters of a label set, the same for good.
    """

    def __init__(self, slot_of: Callable[[TrafficLabels], int]) -> None:
        self._slot_of = slot_of
        self._kept: dict[int, tuple[tuple[Hop, ...], bytes]] = {}

    def pack(self, hops: tuple[Hop, ...]) -> bytes:
        """The bytes of all `hops`, one after the other; raises as `pack_verdict` does."""
        kept = self._kept.get(id(hops))
        if kept is not None:
            return kept[1]
        packed = b"".join(_pack_hop(hop, self._slot_of(hop.labels)) for hop in hops)
        if len(hops) >= _MANY_HOPS:
            if len(self._kept) >= _LISTS_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[id(hops)] = hops, packed  # what is held keeps its id
        return packed


def pack_verdict(verdict: Verdict, hops: HopPacker) -> bytes:
    """The verdict for the core.

    Raises:
        ValueError: something in it does not fit; the message says what.
    """
    try:
        return _pack_verdict(verdict, hops)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"a verdict has a number out of range: {error}") from error


def _pack_verdict(verdict: Verdict, hops: HopPacker) -> bytes:
    preface = verdict.preface
    uses = (
        verdict.uses_source * _USES_SOURCE
        | verdict.uses_host * _USES_HOST
        | verdict.uses_claims * _USES_CLAIMS
    )
    parts = [
        _HEAD.pack(
            _ACTIONS[verdict.action],
            verdict.reason.number,
            uses,
            preface is not None,
            min(int(verdict.ttl_s * 1000), _U32),
            *verdict.epoch,
        ),
        _pack_detail(verdict.detail) if verdict.detail else _NOTHING,
        _pack_text(verdict.forwarded_host),
        _COUNT.pack(len(verdict.headers)),
    ]
    for name, value in verdict.headers:
        parts += (_pack_text(name), _pack_text(value))
    if preface is not None:
        parts.append(pack_address(preface.target))
    parts.append(_HOPS.pack(len(verdict.hops)))
    parts.append(hops.pack(verdict.hops))
    return b"".join(parts)


def _pack_hop(hop: Hop, slot: int) -> bytes:
    ip, port = hop.address
    head = _HOP.pack(
        _PROTOCOLS[hop.protocol], hop.keep_source, ip.version, ip.packed, port, hop.weight, slot
    )
    outer = _pack_text(hop.authority) + _pack_identities(hop.sans)
    return head + outer + _pack_text(hop.inner_authority) + _pack_identities(hop.inner_sans)


def _pack_text(text: str) -> bytes:
    """Raises ValueError if it is too long or has characters that no byte stands for."""
    if not text:
        return _NOTHING
    try:
        packed = text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} cannot be said in latin-1") from error
    if len(packed) > _U16:
        raise ValueError(f"a text of {len(packed)} bytes: {text[:80]!r}...")
    return _COUNT.pack(len(packed)) + packed


def _pack_detail(text: str) -> bytes:
    """For people: cut where it is too long, and readable whatever is in it."""
    packed = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")[:_U16]
    return _COUNT.pack(len(packed)) + packed


@functools.lru_cache(maxsize=8192)
def _pack_identities(identities: tuple[Identity, ...]) -> bytes:
    packed: Iterable[bytes] = (_pack_text(str(identity)) for identity in identities)
    return _COUNT.pack(len(identities)) + b"".join(packed)
