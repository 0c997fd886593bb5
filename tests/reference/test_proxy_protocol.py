# SPDX-License-Identifier: Apache-2.0
"""The PROXY v2 header, byte by byte."""

from __future__ import annotations

from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.reference.proxy_protocol import header
from ztunnel_py.state.address import SockAddr

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4 = SockAddr.parse("10.0.0.1:1000"), SockAddr.parse("10.0.0.2:80")
V6 = SockAddr.parse("[fd00::1]:1000"), SockAddr.parse("[fd00::2]:80")


def test_ipv4_addresses_and_the_identity_are_told() -> None:
    identity = Identity("td", "ns", "sa")
    name = b"spiffe://td/ns/ns/sa/sa"

    made = header(*V4, identity)

    assert made[:12] == SIGNATURE
    assert made[12:14] == b"\x21\x11"
    assert int.from_bytes(made[14:16], "big") == len(made) - 16
    assert made[16:28] == bytes.fromhex("0a000001 0a000002 03e8 0050".replace(" ", ""))
    assert made[28:] == b"\xd0" + len(name).to_bytes(2, "big") + name


def test_ipv6_addresses_are_told() -> None:
    made = header(*V6, None)

    assert made[13] == 0x21
    assert made[16:32] == V6[0].ip.packed
    assert len(made) == 16 + 36


def test_addresses_of_two_families_are_left_out() -> None:
    made = header(V4[0], V6[1], None)

    assert made == SIGNATURE + b"\x21\x01\x00\x00"
