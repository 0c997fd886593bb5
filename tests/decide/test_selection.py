# SPDX-License-Identifier: Apache-2.0
"""Endpoints are chosen as spec state, section 4.3, says, whatever was chosen before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state.build import at, pod, service
from ztunnel_py.decide import upstream
from ztunnel_py.decide.balance import Mode
from ztunnel_py.state.service import BalanceMode, HealthPolicy, LoadBalancer, Scope
from ztunnel_py.state.store import Store, WorkloadRemoval
from ztunnel_py.state.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Health,
    Locality,
    NamespacedHostname,
    TunnelProtocol,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.state.service import Service
    from ztunnel_py.state.store import Update, WorkloadUpdate
    from ztunnel_py.state.workload import Workload

WEB = "default/web.test"
KEY = NamespacedHostname.parse(WEB)
PORTS = (80, 81)
NAMES = ("a", "b", "c", "d")
GATEWAY = GatewayAddress(at("10.9.9.9"), 15008)

mappings = st.dictionaries(st.sampled_from(PORTS), st.sampled_from([0, 8080, 9090]), max_size=2)
localities = st.builds(
    Locality, st.sampled_from(["", "eu", "us"]), st.sampled_from(["", "1"]), st.just("")
)
balancers = st.none() | st.builds(
    LoadBalancer,
    st.lists(st.sampled_from(Scope), max_size=4, unique=True).map(tuple),
    st.sampled_from(BalanceMode),
    st.sampled_from(HealthPolicy),
)


@st.composite
def pods(draw: st.DrawFn, name: str) -> WorkloadUpdate:
    fields: dict[str, Any] = {
        "health": draw(st.sampled_from(Health)),
        "network": draw(st.sampled_from(["", "far"])),
        "network_gateway": draw(st.sampled_from([None, GATEWAY])),
        "locality": draw(localities),
        "node": draw(st.sampled_from(["n1", "n2"])),
        "cluster_id": draw(st.sampled_from(["c1", "c2"])),
        "capacity": draw(st.sampled_from([0, 1, 3])),
        "hostname": draw(st.sampled_from(["", "", "db.test"])),
        "application_tunnel": draw(
            st.sampled_from([None, None, *(tunnel(port) for port in (None, 8080))])
        ),
    }
    serves = {WEB: draw(mappings)} if draw(st.booleans()) else {}
    return pod(name, *draw(st.sampled_from([("10.0.0.1",), ()])), serves=serves, **fields)


def tunnel(port: int | None) -> ApplicationTunnel:
    return ApplicationTunnel(TunnelProtocol.PROXY, port)


webs = st.builds(
    lambda ports, balancer: service("web.test", ports=ports or {80: 0}, load_balancer=balancer),
    mappings,
    balancers,
)
changes = st.one_of(
    webs,
    st.sampled_from(NAMES).flatmap(pods),
    st.builds(WorkloadRemoval, st.sampled_from([f"demo//Pod/default/{n}" for n in NAMES])),
)


@settings(max_examples=400, deadline=None)
@given(
    webs,
    st.tuples(*map(pods, NAMES)),
    st.lists(changes, max_size=4),
    pods("client"),
    st.sampled_from(PORTS),
    st.sampled_from(Mode),
)
def test_the_choice_is_that_of_the_spec_after_every_change(
    web: Update,
    endpoints: tuple[WorkloadUpdate, ...],
    later: list[Update],
    client: WorkloadUpdate,
    port: int,
    mode: Mode,
) -> None:
    store = Store()
    memberships = {one.workload.uid: one for one in endpoints}
    source = client.workload
    for push in ([web, *endpoints], *([one] for one in later)):
        store.apply(push)
        for one in push:
            follow(memberships, one)
        found = store.service(KEY)
        assert found is not None

        chosen = upstream.of_service(store, source, found, port, mode)

        assert {one.workload.uid: (one.port, one.weight) for one in chosen} == naive(
            found, list(memberships.values()), source, port, mode
        )
        assert len({one.workload.uid for one in chosen}) == len(chosen)


def follow(memberships: dict[str, WorkloadUpdate], update: Any) -> None:
    if isinstance(update, WorkloadRemoval):
        memberships.pop(update.uid, None)
    elif not hasattr(update, "service"):
        memberships[update.workload.uid] = update


# --- the spec, step by step


def naive(
    web: Service, updates: list[WorkloadUpdate], source: Workload, port: int, mode: Mode
) -> Mapping[str, tuple[int, int]]:
    if mode is Mode.STANDARD and port not in web.ports:
        return {}
    eligible = [
        (one.workload, one.ports[KEY])
        for one in updates
        if KEY in one.ports and is_eligible(web, one.workload, one.ports[KEY], source, port, mode)
    ]
    balancer = web.load_balancer
    if balancer is not None and balancer.mode is not BalanceMode.STANDARD:
        ranks = [rank(workload, source, balancer) for workload, _ in eligible]
        best = max((one for one in ranks if one is not None), default=None)
        eligible = [
            pair
            for pair, one in zip(eligible, ranks, strict=True)
            if one is not None and one == best
        ]
    return {
        workload.uid: (target, workload.capacity)
        for workload, ports in eligible
        if workload.capacity and (target := target_port(web, workload, ports, port))
    }


def is_eligible(
    web: Service, w: Workload, ports: Mapping[int, int], source: Workload, port: int, mode: Mode
) -> bool:
    balancer = web.load_balancer
    allows_all = balancer is not None and balancer.health_policy is HealthPolicy.ALLOW_ALL
    if w.health is Health.UNHEALTHY and not allows_all:
        return False
    if not w.ips and not w.hostname and (w.network == source.network or w.network_gateway is None):
        return False
    if mode is Mode.STANDARD:
        return web.ports[port] != 0 or port in ports
    return port in web.ports or w.application_tunnel is not None


def rank(w: Workload, source: Workload, balancer: LoadBalancer) -> int | None:
    """None: dropped."""

    def part(one: Workload, scope: Scope) -> str:
        return {
            Scope.REGION: one.locality.region,
            Scope.ZONE: one.locality.zone,
            Scope.SUBZONE: one.locality.subzone,
            Scope.NODE: one.node,
            Scope.CLUSTER: one.cluster_id,
            Scope.NETWORK: one.network,
        }[scope]

    preferences = balancer.routing_preferences
    net_first = bool(preferences) and preferences[0] is Scope.NETWORK
    found = adjust = 0
    for scope in preferences:
        is_equal = part(w, scope) == part(source, scope)
        if scope is Scope.NETWORK and net_first:
            if is_equal:
                adjust = len(preferences) - 1
                found += 1
        elif is_equal:
            found += 1
        else:
            break
    if balancer.mode is BalanceMode.STRICT and found != len(preferences):
        return None
    return found + adjust


def target_port(web: Service, w: Workload, ports: Mapping[int, int], port: int) -> int:
    """0: none. An endpoint's mapping to 0 is not used, unlike in ztunnel [Q-13]."""
    if ports.get(port):
        return ports[port]
    if web.ports.get(port):
        return web.ports[port]
    tunnels = w.application_tunnel
    return port if tunnels is not None and tunnels.port is not None else 0
