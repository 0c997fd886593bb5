# SPDX-License-Identifier: Apache-2.0
"""Addresses of workloads that have a hostname only, looked up for each connection and counted.

Source: spec state, section 4.5; the metric is `istio_on_demand_dns_total`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ztunnel_py.errors import LookupFailedError
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ztunnel_py.state.address import Ip

log = logger("ztunnel::state")


class Addresses(Protocol):
    """Who knows the addresses of hostnames."""

    async def addresses(self, hostname: str) -> tuple[Ip, ...]:
        """All of them.

        Raises:
            LookupFailedError: they cannot be told.
        """


class OnDemandDns:
    """The lookups of one process."""

    def __init__(self, make: Callable[[], Addresses]) -> None:
        """`make` is called for the first lookup, and again after it has failed."""
        self._make = make
        self._resolver: Addresses | None = None
        self._counts: dict[tuple[str, ...], int] = {}

    @property
    def counts(self) -> Mapping[tuple[str, ...], int]:
        """Lookups by the client's labels and the hostname."""
        return self._counts

    async def addresses(self, source: tuple[str, ...], hostname: str) -> tuple[Ip, ...]:
        """The addresses of `hostname` for a connection whose client has the labels `source`.

        Raises:
            LookupFailedError: they cannot be told; that is logged.
        """
        labels = (*source, hostname)
        self._counts[labels] = self._counts.get(labels, 0) + 1
        try:
            if self._resolver is None:
                self._resolver = self._make()
            return await self._resolver.addresses(hostname)
        except LookupFailedError as error:
            log.warn(f"dns lookup failed: {error}", {"hostname": hostname})
            raise
