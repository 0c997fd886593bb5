# SPDX-License-Identifier: Apache-2.0
"""Answers the queries of one client: from the mesh, or from whoever it is forwarded to.

The client is the workload that the proxy serves, whatever address a query comes from. A reply of
the mesh is kept with the very bytes that were asked, until anything in the mesh changes.
Source: spec state, sections 7.2, 7.3 and 7.9; ztunnel src/dns/server.rs.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple, Protocol

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from ztunnel_py.clock import within
from ztunnel_py.dns import answer, message, names
from ztunnel_py.dns.counts import Labels
from ztunnel_py.dns.forward import NoRecordsError
from ztunnel_py.dns.message import VERSIONS, Template, Transport
from ztunnel_py.errors import LookupFailedError
from ztunnel_py.state.address import parse_ip
from ztunnel_py.telemetry.filter import Level
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from dns.name import Name
    from dns.rdatatype import RdataType

    from ztunnel_py.clock import Clock
    from ztunnel_py.dns.answer import Settings
    from ztunnel_py.dns.counts import Counts
    from ztunnel_py.dns.kept import Found
    from ztunnel_py.dns.message import Query
    from ztunnel_py.state.address import Ip
    from ztunnel_py.state.store import Store
    from ztunnel_py.state.workload import Workload, WorkloadInfo

CLIENT_WAIT_S = 5.0
WAITING_MAX = 256
"""Queries of one client that wait for somebody; more are failed at once."""
KEPT_MAX, KEPT_QUERY_BYTES, KEPT_ADDRESSES = 512, 300, 64
"""Replies that are kept for one client: at most so many, to queries and with answers so large."""
_TYPE_OF = {version: kind for kind, version in VERSIONS.items()}

log = logger("dns")


class Upstream(Protocol):
    """Who knows the names outside of the mesh; dns/forward.py."""

    async def lookup(self, name: Name, kind: RdataType) -> Found:
        """What there is.

        Raises:
            NoRecordsError: there is nothing, or it cannot be told.
        """


class _Kept(NamedTuple):
    template: Template
    labels: Labels


class DnsProxy:
    """The names of one client."""

    def __init__(
        self,
        info: WorkloadInfo,
        store: Store,
        settings: Settings,
        upstream: Upstream,
        counts: Counts,
        clock: Clock,
        search: tuple[names.Labels, ...] | None = None,
    ) -> None:
        """`search` is the client's list of domains; None: that of a pod of its namespace."""
        self._info = info
        self._store = store
        self._settings = settings
        self._upstream = upstream
        self._counts = counts
        self._clock = clock
        if search is None:
            search = names.kubernetes_search(info.namespace, settings.domain)
        self._view = names.View(info.namespace, settings.domain, search)
        self._kept: dict[tuple[Transport, bytes], _Kept] = {}
        self._epoch = store.discovery_epoch
        self.n_waiting = 0
        """Queries for which somebody is waited for."""

    def at_once(self, wire: bytes, transport: Transport) -> bytes | Query:
        """The reply to a query, if nobody has to be waited for; empty: it deserves none.

        Else the query, for `answer`.
        """
        if self._epoch != self._store.discovery_epoch:
            self._epoch = self._store.discovery_epoch
            self._kept.clear()
        kept = self._kept.get((transport, wire[2:]))
        if kept is not None and not log.enabled(Level.DEBUG):
            self._counts.requests[kept.labels] += 1
            return kept.template.render(wire[:2], random.sample)
        query = message.read(wire, transport)
        if isinstance(query, bytes):
            return query
        client = self._store.local_workload(self._info)
        reply = None if client is None else self._known(query, client, wire)
        if reply is None and self.n_waiting >= WAITING_MAX:
            self._counts.requests[_labels(query, client)] += 1
            return message.failure(query, dns.rcode.SERVFAIL)
        return query if reply is None else reply

    async def answer(self, query: Query) -> bytes:
        """The reply to a query for which somebody has to be waited for."""
        self.n_waiting += 1
        try:
            client = self._store.local_workload(self._info) or await self._appeared()
            if client is None:
                self._counts.requests[_labels(query, None)] += 1
                return message.failure(query, dns.rcode.SERVFAIL)
            return self._known(query, client) or await self._forwarded(query, client)
        finally:
            self.n_waiting -= 1

    async def resolve(self, hostname: str, version: int) -> Ip:
        """An address of `hostname`, asked for as the client would ask.

        Raises:
            LookupFailedError: it has none of that IP version, or that cannot be told.
        """
        try:
            wire = dns.message.make_query(hostname, _TYPE_OF[version]).to_wire()
        except (dns.exception.DNSException, UnicodeError) as error:
            raise LookupFailedError(f"{hostname}: {error}") from error
        said = self.at_once(wire, Transport.UDP)
        reply = dns.message.from_wire(said if isinstance(said, bytes) else await self.answer(said))
        for records in reply.answer:
            if records.rdtype == _TYPE_OF[version]:
                return parse_ip(records[0].address)
        raise LookupFailedError(f"{hostname}: {dns.rcode.to_text(reply.rcode())}, no addresses")

    def _known(self, query: Query, client: Workload, wire: bytes = b"") -> bytes | None:
        """The mesh's reply, kept for `wire`; None: the name is somebody else's."""
        if not query.is_internet:
            return message.failure(query, dns.rcode.REFUSED)
        asked = names.hostname(query.name.labels[:-1])
        version = VERSIONS.get(query.type)
        if asked is None or version is None:
            return None
        found = answer.decide(self._store, self._settings, client, self._view, asked, version)
        if found is None:
            return None
        kept = _Kept(Template(query, found), _labels(query, client))
        if len(kept.template) <= KEPT_ADDRESSES and 0 < len(wire) <= KEPT_QUERY_BYTES:
            if len(self._kept) >= KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[query.transport, wire[2:]] = kept
        self._counts.requests[kept.labels] += 1
        _say(query, client, found.result.value, len(found.addresses))
        return kept.template.render(query.message.id.to_bytes(2, "big"), random.sample)

    async def _forwarded(self, query: Query, client: Workload) -> bytes:
        labels = _labels(query, client)
        self._counts.requests[labels] += 1
        self._counts.forwarded[labels] += 1
        begun = self._clock.now()
        try:
            found = await self._upstream.lookup(query.name, query.type)
        except NoRecordsError as error:
            self._counts.failed[labels] += 1
            _say(query, client, f"forwarding failed ({error})", 0)
            return message.failure(query, error.rcode)
        finally:
            self._counts.took(labels, self._clock.now() - begun)
        _say(query, client, "forwarded", sum(map(len, found.message.answer)))
        return message.forwarded(query, found.message, found.age_s)

    async def _appeared(self) -> Workload | None:
        """The client's workload, once the mesh has it; None: it has not come."""
        appeared: asyncio.Future[Workload] = asyncio.get_running_loop().create_future()

        def look(_: object = None) -> None:
            found = self._store.local_workload(self._info)
            if found is not None and not appeared.done():
                appeared.set_result(found)

        unsubscribe = self._store.subscribe(look)
        look()
        try:
            return await within(self._clock, CLIENT_WAIT_S, appeared)
        except TimeoutError:
            return None
        finally:
            unsubscribe()


def _labels(query: Query, client: Workload | None) -> Labels:
    kind = dns.rdatatype.to_text(query.type).lower()
    known = "" if kind.startswith("type") else kind  # else a pod could have us count 65,536 types
    if client is None:
        return Labels(known, query.transport.value)
    source = client.canonical_name, client.canonical_revision
    return Labels(known, query.transport.value, *source)


def _say(query: Query, client: Workload, result: str, n_records: int) -> None:
    """The access line."""
    if not log.enabled(Level.DEBUG):
        return
    fields = {
        "src.workload": client.name,
        "src.namespace": client.namespace,
        "query": dns.rdatatype.to_text(query.type),
        "domain": query.name.to_text().lower(),
        "result": result,
        "endpoints": n_records,
    }
    log.debug("", fields)
