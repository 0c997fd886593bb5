# SPDX-License-Identifier: Apache-2.0
"""Looks up hostnames as the system would: `/etc/hosts`, then the servers of `resolv.conf`.

Source: spec state, section 4.5.
"""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from ztunnel_py.errors import LookupFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dns.resolver import Answer

    from ztunnel_py.state.address import Ip

RESOLV_CONF, HOSTS = Path("/etc/resolv.conf"), Path("/etc/hosts")
CACHED_ANSWERS = 4096
ATTEMPTS = 2
_FAMILIES = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}


class Resolver:
    """Addresses of hostnames; answers are kept for their TTL, also that there are none."""

    def __init__(
        self,
        *,
        ipv6: bool = True,
        resolv_conf: Path = RESOLV_CONF,
        hosts: Path = HOSTS,
        port: int = 53,
    ) -> None:
        """Reads both files once.

        Args:
            ipv6: asks for AAAA, too.
            resolv_conf: servers, search list and options.
            hosts: names that DNS is not asked for; may be absent.
            port: of the servers.

        Raises:
            LookupFailedError: `resolv_conf` cannot be read or names no server.
        """
        self._versions = (4, 6) if ipv6 else (4,)
        try:
            found = dns.asyncresolver.Resolver(str(resolv_conf))
        except dns.exception.DNSException as error:
            raise LookupFailedError(f"{resolv_conf}: {error}") from error
        found.cache = dns.resolver.LRUCache(CACHED_ANSWERS)
        found.port = port
        found.lifetime = found.timeout * ATTEMPTS
        self._servers = found
        self._hosts = read_hosts(hosts)

    async def addresses(self, hostname: str) -> tuple[Ip, ...]:
        """All addresses of `hostname`; a trailing dot spares it the search list.

        Raises:
            LookupFailedError: it does not exist, or no server can tell.
        """
        if known := self._hosts.get(hostname.rstrip(".").lower()):
            return tuple(ip for ip in known if ip.version in self._versions)
        asked = (self._answer(hostname, version) for version in self._versions)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: list[Ip] = []
        failures: list[BaseException] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                failures.append(answer)
            else:
                found += (ipaddress.ip_address(record.address) for record in answer.rrset or ())
        if len(failures) == len(answers):
            raise LookupFailedError(f"{hostname}: {failures[0]}") from failures[0]
        return tuple(found)

    async def _answer(self, hostname: str, version: int) -> Answer:
        try:
            return await self._servers.resolve(
                hostname, _FAMILIES[version], search=True, raise_on_no_answer=False
            )
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailedError(str(error)) from error


def read_hosts(path: Path) -> dict[str, list[Ip]]:
    """The names of a hosts file, in lower case; lines that make no sense are passed over."""
    found: dict[str, list[Ip]] = {}
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return found
    for address, names in _entries(text):
        for name in names:
            found.setdefault(name.lower().rstrip("."), []).append(address)
    return found


def _entries(text: str) -> Iterator[tuple[Ip, list[str]]]:
    for line in text.splitlines():
        first, *names = line.partition("#")[0].split() or [""]
        try:
            yield ipaddress.ip_address(first.partition("%")[0]), names
        except ValueError:
            continue
