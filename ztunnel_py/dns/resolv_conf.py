# SPDX-License-Identifier: Apache-2.0
"""Whom the system asks for names, and how: `resolv.conf`.

Source: spec state, section 7.8; resolv.conf(5).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import dns.exception
import dns.inet
import dns.resolver

from ztunnel_py.dns import names

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 5.0


class ResolvConf(NamedTuple):
    """The part of the file that counts."""

    servers: tuple[str, ...]
    search: tuple[names.Labels, ...] = ()
    timeout_s: float = TIMEOUT_S
    """For an answer of one server."""
    is_extended: bool = False
    """Queries say that they take large answers."""


def read(path: Path) -> ResolvConf:
    """What `path` says.

    Raises:
        OSError: it cannot be read, or names no server.
    """
    found = dns.resolver.Resolver(configure=False)
    found.timeout = TIMEOUT_S
    try:
        found.read_resolv_conf(str(path))
    except (dns.exception.DNSException, ValueError) as error:
        raise OSError(errno.EINVAL, f"{path}: {error}") from error
    servers = tuple(str(one) for one in found.nameservers if dns.inet.is_address(str(one)))
    if not servers:
        raise OSError(errno.EINVAL, f"{path}: no address of a server")
    search = (names.hostname(domain.labels[:-1]) for domain in found.search or [found.domain])
    return ResolvConf(
        servers=servers,
        search=tuple(one for one in search if one is not None),
        timeout_s=max(1.0, float(found.timeout)),
        is_extended=found.edns >= 0,
    )
