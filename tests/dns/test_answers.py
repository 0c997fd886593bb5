# SPDX-License-Identifier: Apache-2.0
"""Names of the mesh, as a client hears them over sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest

from tests.dns.asking import records
from tests.state.build import pod, service
from ztunnel_py.dns import answer, names
from ztunnel_py.dns.counts import Labels
from ztunnel_py.errors import LookupFailedError
from ztunnel_py.state.service import IpFamilies, Visibility
from ztunnel_py.state.store import ServiceRemoval

if TYPE_CHECKING:
    from dns.message import Message

    from tests.dns.conftest import Asks
    from ztunnel_py.state.store import ServiceUpdate

SVC = "svc.cluster.local"
LOCAL = dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.RD
SETTINGS = answer.Settings(names.parse("cluster.local"))


def known(name: str, *vips: str, namespace: str = "shop", **fields: Any) -> ServiceUpdate:
    """A Kubernetes service."""
    return service(f"{name}.{namespace}.{SVC}", *vips, namespace=namespace, **fields)


def is_empty(reply: Message) -> bool:
    """The mesh says that there is nothing."""
    return (reply.rcode(), reply.flags, reply.answer) == (dns.rcode.NOERROR, LOCAL, [])


@pytest.mark.spec("state-101")
@pytest.mark.parametrize("by", ["udp", "tcp"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_service_is_found_by_its_short_names(asks: Asks, by: str, host: str) -> None:
    asked = await asks(known("prices", "/10.1.0.1"))

    for name in ("prices", "prices.shop", "prices.shop.svc", f"prices.shop.{SVC}"):
        reply = await asked.ask(name, by=by, host=host)
        assert records(reply) == [f"{name}. A 10.1.0.1"]
        assert (reply.flags, reply.rcode()) == (LOCAL, dns.rcode.NOERROR)
        assert [one.ttl for one in reply.answer] == [30]
        assert reply.authority == reply.additional == []
        assert reply.edns == -1
    assert asked.upstream.asked == []


async def test_service_of_another_namespace_needs_its_namespace(asks: Asks) -> None:
    asked = await asks(known("stock", "/10.1.0.2", namespace="depot"))

    assert records(await asked.ask("stock.depot")) == ["stock.depot. A 10.1.0.2"]
    assert (await asked.ask("stock")).rcode() == dns.rcode.NXDOMAIN
    assert asked.upstream.asked == [("stock.", "A")]


@pytest.mark.spec("state-102")
async def test_search_suffix_is_taken_off_with_a_cname_unless_a_wildcard_matches(
    asks: Asks,
) -> None:
    api = service("api.vendor.test", "/10.1.0.3", "/2001:db8::3")
    rest = service("*.api.vendor.test", "/10.1.0.4")
    asked = await asks(api, rest, known("cart", "/10.1.0.1"))

    suffixed = f"api.vendor.test.shop.{SVC}"
    assert records(await asked.ask(suffixed)) == [
        f"{suffixed}. CNAME api.vendor.test.",
        "api.vendor.test. A 10.1.0.3",
    ]
    assert records(await asked.ask(suffixed, "AAAA"))[1] == "api.vendor.test. AAAA 2001:db8::3"
    wild = f"eu.api.vendor.test.shop.{SVC}"
    assert records(await asked.ask(wild)) == [f"{wild}. A 10.1.0.4"]
    twice = f"cart.shop.shop.{SVC}"
    assert records(await asked.ask(twice)) == [
        f"{twice}. CNAME cart.shop.",
        "cart.shop. A 10.1.0.1",
    ]
    assert is_empty(await asked.ask(twice, "AAAA"))


async def test_dedicated_proxy_takes_off_the_search_list_of_its_system(asks: Asks) -> None:
    asked = await asks(service("api.test", "/10.1.0.3"), search=(("corp", "example"),))

    assert records(await asked.ask("api.test.corp.example")) == [
        "api.test.corp.example. CNAME api.test.",
        "api.test. A 10.1.0.3",
    ]
    assert (await asked.ask(f"api.test.shop.{SVC}")).rcode() == dns.rcode.NXDOMAIN


async def test_narrowest_wildcard_wins_and_that_of_an_earlier_alias_most_of_all(
    asks: Asks,
) -> None:
    asked = await asks(
        service("*.test", "/10.1.0.1"),
        service("*.y.test", "/10.1.0.2"),
        service(f"*.{SVC}", "/10.1.0.3"),
        known("cart", "/10.1.0.4"),
    )

    assert records(await asked.ask("x.y.test")) == ["x.y.test. A 10.1.0.2"]
    assert records(await asked.ask("x.z.test")) == ["x.z.test. A 10.1.0.1"]
    suffixed = f"cart.shop.svc.shop.{SVC}"
    assert records(await asked.ask(suffixed)) == [f"{suffixed}. A 10.1.0.3"]


@pytest.mark.spec("state-103")
async def test_family_that_a_service_does_not_serve_is_empty(asks: Asks) -> None:
    both = ("/10.1.0.1", "/2001:db8::1")
    asked = await asks(
        known("six", *both, ip_families=IpFamilies.IPV6),
        known("four", *both, ip_families=IpFamilies.IPV4),
        known("dual", *both, ip_families=IpFamilies.DUAL),
    )

    assert is_empty(await asked.ask("six"))
    assert records(await asked.ask("six", "AAAA")) == ["six. AAAA 2001:db8::1"]
    assert is_empty(await asked.ask("four", "AAAA"))
    assert records(await asked.ask("four")) == ["four. A 10.1.0.1"]
    assert records(await asked.ask("dual")) == ["dual. A 10.1.0.1"]
    assert records(await asked.ask("dual", "AAAA")) == ["dual. AAAA 2001:db8::1"]
    assert asked.upstream.asked == []


@pytest.mark.spec("state-104")
async def test_vip_of_another_network_is_not_told(asks: Asks) -> None:
    asked = await asks(
        known("far", "remote/10.1.0.1"), known("near", "remote/10.1.0.2", "/10.1.0.3")
    )

    assert is_empty(await asked.ask("far"))
    assert records(await asked.ask("near")) == ["near. A 10.1.0.3"]


@pytest.mark.spec("state-105")
async def test_headless_service_has_one_address_of_each_endpoint(asks: Asks) -> None:
    serves = {f"shop/db.shop.{SVC}": {80: 80}, "shop/nodes.vendor.test": {80: 80}}
    asked = await asks(
        known("db"),
        service("nodes.vendor.test", namespace="shop"),
        service("range.vendor.test", cidrs=("/10.9.0.0/16",)),
        pod("db-0", "10.0.1.1", "10.0.9.9", "2001:db8::1", serves=serves),
        pod("db-1", "10.0.1.2", network="other", serves=serves),
    )

    assert records(await asked.ask("db")) == ["db. A 10.0.1.1", "db. A 10.0.1.2"]
    assert records(await asked.ask("db", "AAAA")) == ["db. AAAA 2001:db8::1"]
    for name in ("nodes.vendor.test", "range.vendor.test", f"db-0.db.shop.{SVC}"):
        assert (await asked.ask(name)).rcode() == dns.rcode.NXDOMAIN
        assert asked.upstream.asked[-1] == (f"{name}.", "A")


@pytest.mark.spec("state-106")
async def test_services_of_one_host_are_preferred_by_namespace(asks: Asks) -> None:
    def of(namespace: str, vip: str, **fields: Any) -> ServiceUpdate:
        return service("api.test", f"/{vip}", namespace=namespace, **fields)

    first, liked = of("a", "10.1.0.1"), of("liked", "10.1.0.2")
    canonical, own = of("b", "10.1.0.3", canonical=True), of("shop", "10.1.0.4")
    settings = SETTINGS._replace(preferred_namespace="liked")

    asked = await asks(first, liked, canonical, own, settings=settings)
    for gone, vip in ((own, 4), (canonical, 3), (liked, 2), (first, 1)):
        assert records(await asked.ask("api.test")) == [f"api.test. A 10.1.0.{vip}"]
        asked.store.apply([ServiceRemoval(gone.service.key)])


@pytest.mark.spec("state-49")
async def test_private_service_of_another_namespace_is_somebody_elses_name(asks: Asks) -> None:
    private: dict[str, Any] = {"namespace": "depot", "visibility": Visibility.NAMESPACE}
    asked = await asks(
        service("private.test", "/10.1.0.1", **private),
        service("own.test", "/10.1.0.2", namespace="shop", visibility=Visibility.NAMESPACE),
    )

    assert (await asked.ask("private.test")).rcode() == dns.rcode.NXDOMAIN
    assert asked.upstream.asked == [("private.test.", "A")]
    assert records(await asked.ask("own.test")) == ["own.test. A 10.1.0.2"]


async def test_full_name_of_a_foreign_cluster_is_known_and_its_short_one_is_not(
    asks: Asks,
) -> None:
    host = "bill.depot.svc.cluster.far"
    asked = await asks(service(host, "/10.1.0.1", namespace="depot"))

    assert records(await asked.ask(host)) == [f"{host}. A 10.1.0.1"]
    assert (await asked.ask("bill.depot")).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.spec("state-109")
async def test_answer_that_is_too_large_is_cut_for_udp_and_whole_for_tcp(asks: Asks) -> None:
    vips = [f"/10.2.{i // 256}.{i % 256}" for i in range(256)]
    asked = await asks(service("large.com", *vips))
    query = dns.message.make_query("large.com", "A", payload=1232)

    wire = await asked.say(query.to_wire())
    reply = dns.message.from_wire(wire)

    assert len(wire) <= 1232
    assert reply.flags & dns.flags.TC
    assert len(reply.answer[0]) == 74
    assert (reply.edns, reply.payload) == (0, 1232)
    whole = await asked.ask("large.com", by="tcp", payload=1232)
    assert len(whole.answer[0]) == 256
    assert not whole.flags & dns.flags.TC
    assert whole.payload == 1232
    small = dns.message.make_query("large.com", "A", payload=100)
    assert 512 - 16 < len(await asked.say(small.to_wire())) <= 512
    plain = await asked.say(dns.message.make_query("large.com", "A").to_wire())
    assert 4096 - 16 < len(plain) <= 4096


async def test_addresses_come_in_any_order(asks: Asks) -> None:
    vips = [f"/10.2.0.{i}" for i in range(8)]
    asked = await asks(known("many", *vips))

    orders = {tuple(map(str, (await asked.ask("many")).answer[0])) for _ in range(30)}

    assert len(orders) > 5
    assert {frozenset(order) for order in orders} == {frozenset(vip[1:] for vip in vips)}


@pytest.mark.spec("state-110")
async def test_case_does_not_matter_and_is_echoed(asks: Asks) -> None:
    asked = await asks(known("prices", "/10.1.0.1"))
    query = dns.message.make_query("PriCes.sHop", "A").to_wire()

    reply = await asked.say(query)

    assert reply[12 : len(query)] == query[12:]
    assert records(dns.message.from_wire(reply)) == ["PriCes.sHop. A 10.1.0.1"]


@pytest.mark.spec("state-111")
async def test_without_ipv6_known_names_have_no_such_addresses(asks: Asks) -> None:
    asked = await asks(
        known("prices", "/10.1.0.1", "/2001:db8::1"), settings=SETTINGS._replace(ipv6=False)
    )

    assert is_empty(await asked.ask("prices", "AAAA"))
    assert records(await asked.ask("prices")) == ["prices. A 10.1.0.1"]


async def test_extensions_are_answered_in_kind(asks: Asks) -> None:
    asked = await asks(known("prices", "/10.1.0.1"))
    query = dns.message.make_query("prices", "A", use_edns=0, payload=100, want_dnssec=True)

    reply = dns.message.from_wire(await asked.say(query.to_wire()))

    assert (reply.payload, reply.edns, reply.options) == (512, 0, ())
    assert reply.ednsflags & dns.flags.DO
    query.flags = dns.flags.CD | dns.flags.AD
    reply = dns.message.from_wire(await asked.say(query.to_wire()))
    assert reply.flags == dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.CD


async def test_change_of_the_mesh_is_heard_at_once(asks: Asks) -> None:
    asked = await asks(known("prices", "/10.1.0.1"))
    assert records(await asked.ask("prices")) == records(await asked.ask("prices"))

    asked.store.apply([known("prices", "/10.1.0.2")])

    assert records(await asked.ask("prices")) == ["prices. A 10.1.0.2"]


async def test_kept_replies_have_the_id_of_each_query_and_are_bounded(asks: Asks) -> None:
    asked = await asks(service("*.test", "/10.1.0.1"))

    for _ in range(2):
        for i in range(600):
            reply = await asked.ask(f"n{i}.test")  # checks the id
            assert records(reply) == [f"n{i}.test. A 10.1.0.1"]
    assert len(asked.proxy._kept) <= 512


async def test_names_are_looked_up_for_others_as_for_the_client(asks: Asks) -> None:
    asked = await asks(known("prices", "/10.1.0.1", "/2001:db8::1"))

    assert str(await asked.proxy.resolve("prices", 4)) == "10.1.0.1"
    assert str(await asked.proxy.resolve("prices.shop", 6)) == "2001:db8::1"
    assert str(await asked.proxy.resolve("web.example", 4)) == "192.0.2.1"
    for hostname in ("nobody.example", "", ".", "a..b", "x" * 64, "\udcff", "brief.example."):
        with pytest.raises(LookupFailedError):
            await asked.proxy.resolve(hostname, 6)
    assert asked.counts.requests[Labels("aaaa", "udp", "cart", "v1")] >= 3
