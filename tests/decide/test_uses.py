# SPDX-License-Identifier: Apache-2.0
"""A verdict serves every key that agrees with its own in what was read of it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state.build import at, exact, ip, pod, policy, service
from ztunnel_py.decide import inbound, outbound
from ztunnel_py.decide.key import (
    CapturedReading,
    InboundKey,
    OutboundKey,
    PassthroughKey,
    RequestReading,
)
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import DENIAL_TTL_S, FORWARD_TTL_S, Action
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.policy import Match, PolicyScope
from ztunnel_py.state.service import BalanceMode, LoadBalancer, Scope
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    Protocol,
    TunnelProtocol,
    WorkloadInfo,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Update

Key = OutboundKey | InboundKey | PassthroughKey

ADDRESSES = [ip(f"10.0.0.{n}") for n in range(1, 6)]
HOSTS = ["web.test", "db.test", "way.test"]
PORTS = [80, 8080, 15008]
NETWORKS = ["", "far"]
INFO = WorkloadInfo("me", "default", "me")

address = st.sampled_from(ADDRESSES)
host = st.sampled_from(HOSTS)
hostname = host.map(lambda name: NamespacedHostname("default", name))
target = st.builds(SockAddr, address, st.sampled_from(PORTS))
ports = st.dictionaries(st.sampled_from(PORTS), st.sampled_from([0, *PORTS]), max_size=2)
gateway = st.none() | st.builds(
    GatewayAddress, address.map(lambda one: at(str(one))) | hostname, st.just(15008)
)
tunnels = st.none() | st.builds(
    ApplicationTunnel, st.sampled_from(TunnelProtocol), st.sampled_from([None, 8080])
)
balancers = st.none() | st.builds(
    LoadBalancer,
    st.lists(st.sampled_from(Scope), max_size=2, unique=True).map(tuple),
    st.sampled_from(BalanceMode),
)
identity = st.none() | st.sampled_from(
    [Identity("cluster.local", "default", name) for name in ("me", "a", "b")]
)


@st.composite
def pods(draw: st.DrawFn, name: str) -> Update:
    fields: dict[str, Any] = {
        "network": draw(st.sampled_from(NETWORKS)) if name != "me" else "",
        "protocol": draw(st.sampled_from(Protocol)),
        "waypoint": draw(gateway),
        "application_tunnel": draw(tunnels),
        "service_account": draw(st.sampled_from(["me", "a"])) if name != "me" else "me",
        "authorization_policies": draw(st.sampled_from([(), ("default/p",), ("default/no",)])),
        "network_gateway": draw(gateway),
        "capacity": draw(st.sampled_from([1, 1, 3])),
        "locality": draw(st.sampled_from([Locality(), Locality("eu")])),
        "services": tuple(draw(st.lists(hostname, max_size=3, unique=True))),
    }
    serves = {f"default/{name}": draw(ports) for name in draw(st.lists(host, max_size=2))}
    where = [str(one) for one in draw(st.lists(address, min_size=1, max_size=2))]
    return pod(name, *where, serves=serves, **fields)


@st.composite
def services(draw: st.DrawFn, name: str) -> Update:
    vips = [f"/{one}" for one in draw(st.lists(address, max_size=2))]
    fields: dict[str, Any] = {"waypoint": draw(gateway), "load_balancer": draw(balancers)}
    return service(name, *vips, ports=draw(ports), **fields)


@st.composite
def policies(draw: st.DrawFn) -> Update:
    match = Match(
        source_ips=draw(st.sampled_from([(), (ipaddress.ip_network("10.0.0.0/31"),)])),
        principals=draw(st.sampled_from([(), exact("cluster.local/ns/default/sa/a")])),
        destination_ports=draw(st.sampled_from([(), (80,)])),
    )
    return policy(
        "p",
        match,
        action=draw(st.sampled_from(["Allow", "Deny"])),
        scope=draw(st.sampled_from(PolicyScope)),
        is_dry_run=draw(st.booleans()),
    )


updates = st.tuples(
    pods("me"),
    pods("a"),
    pods("b"),
    *(services(name) for name in HOSTS),
    st.lists(policies(), max_size=1),
).map(lambda parts: [*parts[:-1], *parts[-1]])

authority = st.one_of(
    target.map(str), st.builds("{}:{}".format, host, st.sampled_from(PORTS)), st.just("nonsense")
)
claims = st.tuples(
    st.sampled_from([None, "", "FAR", "other"]),
    st.sampled_from([None, (), ("k8s.namespace.name=x",), ("service.name=y,cloud.region=z",)]),
)
forwarded = st.sampled_from(["", "nobody.test", *HOSTS])
request = st.builds(InboundKey, st.just("w"), address, address, identity, authority)
outgoing = st.builds(OutboundKey, st.just("w"), address, target)
plaintext = st.builds(PassthroughKey, st.just("w"), address, target)
configurations = st.builds(
    Settings,
    response_baggage=st.booleans(),
    localhost_app_tunnel=st.booleans(),
    network=st.sampled_from(NETWORKS),
)


@settings(max_examples=400)
@given(updates, configurations, st.one_of(request, outgoing, plaintext), address, forwarded, claims)
def test_the_verdict_of_a_key_is_that_of_every_key_it_stands_for(
    state: list[Update],
    chosen: Settings,
    key: Key,
    other_source: Any,
    other_host: str,
    other_claims: tuple[str | None, tuple[str, ...] | None],
) -> None:
    decide = decider(state, chosen)
    verdict = decide(key)

    other = key
    if not verdict.uses_source:
        other = other._replace(src=other_source)
    if isinstance(other, InboundKey) and not verdict.uses_host:
        other = other._replace(forwarded_host=other_host)
    if isinstance(other, InboundKey) and not verdict.uses_claims:
        network, baggage = other_claims
        other = other._replace(network=network, baggage=baggage)

    assert decide(other) == verdict


@given(updates, configurations, st.one_of(request, outgoing, plaintext))
def test_a_forward_lives_longer_than_a_refusal(
    state: list[Update], chosen: Settings, key: Key
) -> None:
    verdict = decider(state, chosen)(key)

    expected = FORWARD_TTL_S if verdict.action is Action.FORWARD else DENIAL_TTL_S
    assert verdict.ttl_s == expected


def decider(state: list[Update], chosen: Settings) -> Callable[[Key], Verdict]:
    store = Store()
    store.apply(state)
    rulebook, local = Rulebook(store), store.local_workload(INFO) or INFO

    def decide(key: Key) -> Verdict:
        match key:
            case OutboundKey():
                return outbound.decide(store, chosen, key, local)
            case InboundKey():
                return inbound.decide(store, rulebook, chosen, key, local)
            case PassthroughKey():
                return inbound.decide_passthrough(store, rulebook, chosen, key, local)

    return decide


def test_a_refusal_for_want_of_the_local_workload_is_not_kept() -> None:
    key = OutboundKey("w", ip("10.0.0.1"), SockAddr.parse("10.0.0.2:80"))

    verdict = outbound.decide(Store(), Settings(), key, INFO)

    assert (verdict.reason, verdict.ttl_s) == (Reason.UNKNOWN_WORKLOAD, 0)


@pytest.mark.parametrize(
    ("named", "uses_host"),
    [((), False), (("web.test",), False), (("db.test",), True), (("web.test", "db.test"), True)],
)
def test_the_forwarded_host_is_read_only_where_it_can_change_the_service(
    named: tuple[str, ...], uses_host: bool
) -> None:
    state: list[Update] = [
        pod("me", "10.0.0.2", services=tuple(NamespacedHostname("default", one) for one in named)),
        service("web.test", ports={80: 8080}),
        service("db.test", ports={1: 1}),
    ]
    key = InboundKey("w", ip("10.0.0.2"), ip("10.0.0.1"), None, "10.0.0.2:8080")

    assert decider(state, Settings())(key).uses_host is uses_host


def test_the_source_is_read_only_where_a_waypoint_may_be_the_caller() -> None:
    way = GatewayAddress(at("10.0.0.9"), 15008)
    state: list[Update] = [
        pod("me", "10.0.0.1"),
        pod("plain", "10.0.0.2"),
        pod("guarded", "10.0.0.3", waypoint=way),
        pod("way", "10.0.0.9"),
    ]
    decide = decider(state, Settings())
    keys = [OutboundKey("w", ip("10.0.0.1"), SockAddr.parse(f"10.0.0.{n}:80")) for n in (2, 3)]

    assert [decide(key).uses_source for key in keys] == [False, True]


def test_readings_show_every_field_of_their_keys() -> None:
    def shown(reading: type) -> set[str]:
        return {name for name, value in vars(reading).items() if isinstance(value, property)}

    assert shown(CapturedReading) == set(OutboundKey._fields) - {"workload"}
    assert shown(CapturedReading) == set(PassthroughKey._fields) - {"workload"}
    assert shown(RequestReading) == set(InboundKey._fields) - {"workload"}
