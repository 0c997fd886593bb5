# SPDX-License-Identifier: Apache-2.0
"""Addresses as the mesh writes them: ip, ip:port, network/ip."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Cidr = ipaddress.IPv4Network | ipaddress.IPv6Network


def canonical(ip: Ip) -> Ip:
    """An IPv4-mapped IPv6 address as plain IPv4, any other unchanged.

    Applied where an address enters the process (sockets), never in lookups: the store does not
    canonicalise. Source: spec state, section 3.5.
    """
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def parse_ip(text: str) -> Ip:
    """The address written in `text`; scope ids are refused.

    Raises:
        ValueError: not an IP address.
    """
    if "%" in text:
        raise ValueError(f"{text!r} is not an IP address: it carries a scope id")
    return ipaddress.ip_address(text)


class SockAddr(NamedTuple):
    """An IP address and a TCP port."""

    ip: Ip
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"

    @classmethod
    def of(cls, address: tuple[str, int] | tuple[str, int, int, int]) -> SockAddr:
        """A canonical address from what Python's `socket` returns for a peer or local name."""
        return cls(canonical(parse_ip(address[0].partition("%")[0])), address[1])

    @classmethod
    def parse(cls, text: str) -> SockAddr:
        """`ip:port` or `[v6]:port`; not canonicalised.

        Raises:
            ValueError: anything else, also a port outside 0..65535.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not ip:port")
        if host.startswith("[") and host.endswith("]"):
            return cls(ipaddress.IPv6Address(host[1:-1]), int(port))
        return cls(ipaddress.IPv4Address(host), int(port))


class NetworkAddress(NamedTuple):
    """An IP address on a named network; the empty network is a valid one."""

    network: str
    ip: Ip

    def __str__(self) -> str:
        return f"{self.network}/{self.ip}"

    @classmethod
    def parse(cls, text: str) -> NetworkAddress:
        """`network/ip`, split at the first slash.

        Raises:
            ValueError: no slash, or no IP address behind it.
        """
        network, slash, ip = text.partition("/")
        if not slash:
            raise ValueError(f"{text!r} is not network/ip")
        return cls(network, parse_ip(ip))
