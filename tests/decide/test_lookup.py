# SPDX-License-Identifier: Apache-2.0
"""Workloads that have a hostname only: what is to be looked up, and the hop that it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.decide.build import SERVES, VIP, decide, gateway
from tests.state.build import ip, pod, service
from ztunnel_py.decide.lookup import located
from ztunnel_py.decide.refusal import Refused
from ztunnel_py.decide.verdict import HopProtocol, Lookup
from ztunnel_py.state.workload import Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.decide.verdict import Hop
    from ztunnel_py.state.address import Ip

UID = "demo//Pod/default/outer"
WEB = service("web.test", f"/{VIP}", "/2001:db8::10")


def only(hops: tuple[Hop, ...]) -> Hop:
    (hop,) = hops
    return hop


@pytest.mark.parametrize(
    ("protocol", "port", "authority"),
    [
        (Protocol.TCP, 8080, ""),
        (Protocol.HBONE, 15008, "10.0.0.7:8080"),
    ],
)
def test_hostname_is_dialled_at_the_address_that_it_has(
    protocol: Protocol, port: int, authority: str
) -> None:
    outer = pod("outer", hostname="outer.test", protocol=protocol, serves=SERVES)
    verdict = decide(WEB, outer, to=f"{VIP}:80")

    assert verdict.looks_up
    hop = located(only(verdict.hops), (ip("10.0.0.7"),), lambda ips: ips[0])
    assert (str(hop.address), hop.authority) == (f"10.0.0.7:{port}", authority)
    assert hop.lookup is None


def test_ipv6_authority_has_brackets() -> None:
    outer = pod("outer", hostname="outer.test", serves=SERVES)
    verdict = decide(WEB, outer, to="[2001:db8::10]:80")

    hop = located(only(verdict.hops), (ip("2001:db8::7"),), lambda ips: ips[0])
    assert (str(hop.address), hop.authority) == ("[2001:db8::7]:15008", "[2001:db8::7]:8080")


@pytest.mark.spec("state-73")
@pytest.mark.parametrize(
    ("to", "ips", "usable"),
    [
        (f"{VIP}:80", ("10.0.0.7", "2001:db8::7", "10.0.0.8"), ("10.0.0.7", "10.0.0.8")),
        (f"{VIP}:80", ("2001:db8::7", "2001:db8::8"), ("2001:db8::7", "2001:db8::8")),
        ("[2001:db8::10]:80", ("10.0.0.7", "2001:db8::7"), ("2001:db8::7",)),
    ],
)
def test_address_of_the_callers_family_is_preferred(
    to: str, ips: tuple[str, ...], usable: tuple[str, ...]
) -> None:
    outer = pod("outer", hostname="outer.test", protocol=Protocol.TCP, serves=SERVES)
    drawn_from: list[tuple[str, ...]] = []

    def draw(found: Sequence[Ip]) -> Ip:
        drawn_from.append(tuple(map(str, found)))
        return found[-1]

    hop = located(only(decide(WEB, outer, to=to).hops), tuple(map(ip, ips)), draw)

    assert drawn_from == [usable]
    assert hop.address.ip == ip(usable[-1])


def test_hostname_without_addresses_is_refused_by_the_workloads_uid() -> None:
    outer = pod("outer", hostname="outer.test", serves=SERVES)
    hop = only(decide(WEB, outer, to=f"{VIP}:80").hops)

    with pytest.raises(Refused) as refused:
        located(hop, (), lambda ips: ips[0])

    assert refused.value.reason.describe(refused.value.detail) == (
        f"ip addresses were resolved for workload {UID}, "
        "but valid dns response had no A/AAAA records"
    )


def test_address_is_used_where_there_is_one() -> None:
    both = pod("outer", "10.0.0.9", hostname="outer.test", serves=SERVES)
    verdict = decide(WEB, both, to=f"{VIP}:80")

    assert not verdict.looks_up
    assert str(only(verdict.hops).address) == "10.0.0.9:15008"


def test_waypoint_is_asked_for_what_was_called_whatever_its_address() -> None:
    web = service("web.test", f"/{VIP}", waypoint=gateway("default/way.test"))
    way = service("way.test", ports={15008: 15008})
    outer = pod("outer", hostname="outer.test", serves={"default/way.test": {}})
    verdict = decide(web, way, outer, to=f"{VIP}:80")

    hop = only(verdict.hops)
    assert hop.lookup == Lookup("outer.test", 4, UID, None)
    hop = located(hop, (ip("10.0.0.7"),), lambda ips: ips[0])
    assert (str(hop.address), hop.authority) == ("10.0.0.7:15008", f"{VIP}:80")


def test_gateway_may_have_a_hostname_only() -> None:
    web = service("web.test", f"/{VIP}", subject_alt_names=("spiffe://td/ns/far/sa/web",))
    split = pod("split", network="far", network_gateway=gateway("default/gw.test"), serves=SERVES)
    way = service("gw.test", ports={15008: 15008})
    outer = pod("outer", hostname="gw.example", serves={"default/gw.test": {}})
    verdict = decide(web, split, way, outer, to=f"{VIP}:80")

    hop = only(verdict.hops)
    assert hop.protocol is HopProtocol.DOUBLE_HBONE
    assert hop.place.startswith("gw.example:15008")
    hop = located(hop, (ip("10.0.0.7"),), lambda ips: ips[0])
    assert (str(hop.address), hop.authority) == ("10.0.0.7:15008", "web.test:80")
