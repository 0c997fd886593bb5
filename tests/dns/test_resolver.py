# SPDX-License-Identifier: Apache-2.0
"""Hostnames are looked up as the system would, at a real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.dns_server import DnsServer
from ztunnel_py.dns.resolver import Resolver
from ztunnel_py.errors import LookupFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

RECORDS = (
    "both.test. 60 A 10.0.0.1",
    "both.test. 60 A 10.0.0.2",
    "both.test. 60 AAAA 2001:db8::1",
    "brief.test. 0 A 10.0.0.3",
    "text.test. 60 TXT nothing",
    "web.shop.test. 60 A 10.0.0.4",
)


class Dns:
    """A server, and resolvers that ask it."""

    def __init__(self, server: DnsServer, port: int, folder: Path) -> None:
        self.server, self._port, self._folder = server, port, folder

    def resolver(self, *, ipv6: bool = True, options: str = "", hosts: str = "") -> Resolver:
        """A resolver that has read these files."""
        conf, names = self._folder / "resolv.conf", self._folder / "hosts"
        conf.write_text(f"nameserver 127.0.0.1\nsearch shop.test\n{options}\n")
        names.write_text(hosts)
        return Resolver(ipv6=ipv6, resolv_conf=conf, hosts=names, port=self._port)


@pytest.fixture
async def dns(tmp_path: Path) -> AsyncIterator[Dns]:
    server = DnsServer(RECORDS)
    yield Dns(server, await server.bind("127.0.0.1"), tmp_path)
    server.close()


async def found(resolver: Resolver, name: str) -> list[str]:
    return sorted(map(str, await resolver.addresses(name)))


async def test_addresses_of_both_families_are_found(dns: Dns) -> None:
    assert await found(dns.resolver(), "both.test") == ["10.0.0.1", "10.0.0.2", "2001:db8::1"]


async def test_without_ipv6_only_ipv4_is_asked_for(dns: Dns) -> None:
    assert await found(dns.resolver(ipv6=False), "both.test") == ["10.0.0.1", "10.0.0.2"]
    assert {kind for _, kind in dns.server.asked} == {"A"}


async def test_answers_are_kept_for_their_ttl_also_that_there_are_none(dns: Dns) -> None:
    resolver = dns.resolver()
    for name, times in (("both.test", 1), ("brief.test", 3)):
        dns.server.asked.clear()
        for _ in range(3):
            await resolver.addresses(name)
        assert dns.server.asked.count((f"{name}.", "A")) == times

    dns.server.asked.clear()
    for _ in range(3):
        with pytest.raises(LookupFailedError):
            await resolver.addresses("nobody.test.")
    assert dns.server.asked.count(("nobody.test.", "A")) == 1


async def test_name_without_addresses_is_not_an_error(dns: Dns) -> None:
    assert await found(dns.resolver(), "text.test.") == []


async def test_short_names_are_searched_and_absolute_ones_are_not(dns: Dns) -> None:
    resolver = dns.resolver(options="options ndots:2")
    assert await found(resolver, "web") == ["10.0.0.4"]
    with pytest.raises(LookupFailedError):
        await resolver.addresses("web.")


async def test_hosts_file_goes_first(dns: Dns) -> None:
    resolver = dns.resolver(hosts="# mine\n10.9.9.9 other Both.test # here\nnonsense both.test\n")
    assert await found(resolver, "both.test") == ["10.9.9.9"]
    assert await found(resolver, "other") == ["10.9.9.9"]
    assert dns.server.asked == []


async def test_server_that_does_not_answer_is_given_up(dns: Dns) -> None:
    dns.server.is_silent = True
    resolver = dns.resolver(options="options timeout:1")
    with pytest.raises(LookupFailedError, match=r"both\.test"):
        async with asyncio.timeout(10):
            await resolver.addresses("both.test.")


@pytest.mark.parametrize("text", [None, "search shop.test\n"])
def test_file_that_names_no_server_is_an_error(tmp_path: Path, text: str | None) -> None:
    conf = tmp_path / "resolv.conf"
    if text is not None:
        conf.write_text(text)
    with pytest.raises(LookupFailedError, match=str(conf)):
        Resolver(resolv_conf=conf)
