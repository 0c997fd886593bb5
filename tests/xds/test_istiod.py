# SPDX-License-Identifier: Apache-2.0
"""What a real istiod was seen to send, and what it has to mean: spec state, section 2.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.wrappers_pb2 import UInt32Value

from tests.state.build import at
from tests.xds import build
from ztunnel_py.decide import outbound
from ztunnel_py.decide.key import OutboundKey
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import HopProtocol
from ztunnel_py.proto import workload_pb2 as wds
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.service import BalanceMode, IpFamilies, Scope
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import NamespacedHostname
from ztunnel_py.xds.counts import Counts
from ztunnel_py.xds.ingest import Ingest

if TYPE_CHECKING:
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.proto.discovery_pb2 import Resource

WEB = NamespacedHostname("ns", "web.ns.svc.cluster.local")
APP_PROTOCOL_HTTP2 = b"\x18\x02"
"""Field 3 of a port, which nobody here reads."""


async def heard(*resources: Resource, store: Store | None = None) -> Store:
    """A store that has taken a response."""
    store = store or Store()
    response = build.response(*resources)
    outcome = await Ingest(store, Counts()).take(response.SerializeToString())
    assert not outcome.rejected
    return store


def endpoint_of(*ports: tuple[int, int]) -> dict[str, Any]:
    """The field of a pod that serves WEB at these ports."""
    return {"services": {str(WEB): wds.PortList(ports=port_list(*ports))}}


def port_list(*ports: tuple[int, int]) -> list[wds.Port]:
    return [wds.Port(service_port=port, target_port=target) for port, target in ports]


def called(store: Store, address: str) -> Verdict:
    """What is decided for the pod `client` that calls `address`."""
    client = store.workload(build.uid("client"))
    assert client is not None
    key = OutboundKey("w", client.ips[0], SockAddr.parse(address))
    return outbound.decide(store, Settings(), key, client)


CLIENT = build.pod("client", "10.0.0.1")


async def test_trust_domain_and_network_are_left_out_where_they_are_usual() -> None:
    store = await heard(build.pod("a", "10.0.0.1", service_account="default"))

    workload = store.workload(build.uid("a"))

    assert workload is not None
    assert (workload.trust_domain, workload.network) == ("cluster.local", "")
    assert str(workload.identity) == "spiffe://cluster.local/ns/ns/sa/default"


async def test_a_pod_is_called_in_plaintext_until_it_is_announced_as_captured() -> None:
    store = await heard(CLIENT, build.pod("a", "10.0.0.2", tunnel_protocol=wds.NONE))
    before = called(store, "10.0.0.2:80")

    await heard(build.pod("a", "10.0.0.2", version="v2"), store=store)
    after = called(store, "10.0.0.2:80")

    assert [before.hops[0].protocol, after.hops[0].protocol] == [
        HopProtocol.TCP,
        HopProtocol.HBONE,
    ]


async def test_a_host_network_pod_is_not_found_at_its_nodes_address() -> None:
    host = build.pod("proxy", "10.0.0.2", network_mode=wds.HOST_NETWORK, tunnel_protocol=wds.NONE)
    store = await heard(CLIENT, host)

    assert store.workload(build.uid("proxy")) is not None
    assert called(store, "10.0.0.2:80").hops[0].protocol is HopProtocol.TCP
    assert store.workload_at(at("10.0.0.2")) is None


async def test_a_waypoint_is_spoken_to_in_hbone_whatever_its_own_protocol() -> None:
    waypoint = NamespacedHostname("ns", "waypoint.ns.svc.cluster.local")
    reference = wds.GatewayAddress(
        hostname=wds.NamespacedHostname(**waypoint._asdict()), hbone_mtls_port=15008
    )
    ways = port_list((15021, 15021), (15008, 15008))
    prefer_close = wds.LoadBalancing(
        routing_preference=["NETWORK", "REGION", "ZONE"], mode="FAILOVER"
    )
    store = await heard(
        CLIENT,
        build.service(WEB.hostname, "10.96.0.1", waypoint=reference),
        build.service(waypoint.hostname, "10.96.0.2", load_balancing=prefer_close, ports=ways),
        build.pod(
            "way",
            "10.0.0.9",
            tunnel_protocol=wds.NONE,
            services={str(waypoint): wds.PortList(ports=ways)},
        ),
    )

    (hop,) = called(store, "10.96.0.1:80").hops

    assert (hop.protocol, str(hop.address)) == (HopProtocol.HBONE, "10.0.0.9:15008")
    assert hop.authority == "10.96.0.1:80"
    service = store.service(waypoint)
    assert service is not None
    assert service.load_balancer is not None
    assert service.load_balancer.mode is BalanceMode.FAILOVER
    assert service.load_balancer.routing_preferences == (Scope.NETWORK, Scope.REGION, Scope.ZONE)


async def test_a_number_that_is_both_udp_and_tcp_is_one_port() -> None:
    both = port_list((53, 53), (53, 53))
    store = await heard(
        CLIENT,
        build.service(WEB.hostname, "10.96.0.1", ports=both, ip_families=wds.IPV4_ONLY),
        build.pod("a", "10.0.0.2", **endpoint_of((53, 53), (53, 53))),
    )

    service = store.service(WEB)

    assert service is not None
    assert (service.ports, service.ip_families) == ({53: 53}, IpFamilies.IPV4)
    assert called(store, "10.96.0.1:53").hops[0].authority == "10.0.0.2:53"


async def test_a_named_target_port_is_what_the_endpoint_says() -> None:
    store = await heard(
        CLIENT,
        build.service(WEB.hostname, "10.96.0.1", ports=port_list((80, 0))),
        build.pod("a", "10.0.0.2", **endpoint_of((80, 8080))),
    )

    assert called(store, "10.96.0.1:80").hops[0].authority == "10.0.0.2:8080"


@pytest.mark.parametrize("vip", ["240.240.0.1", "2001:2::f0f0:1"])
async def test_a_service_entry_is_found_at_both_of_its_automatic_addresses(vip: str) -> None:
    entry = "Kubernetes/networking.istio.io/ServiceEntry/ns/entry/192.0.2.9"
    store = await heard(
        CLIENT,
        build.service("api.example.com", "240.240.0.1", "2001:2::f0f0:1", canonical=True),
        build.pod(
            "entry",
            "192.0.2.9",
            uid=entry,
            tunnel_protocol=wds.NONE,
            capacity=UInt32Value(value=3),
            services={"ns/api.example.com": wds.PortList(ports=port_list((80, 80)))},
        ),
    )

    verdict = called(store, f"[{vip}]:80" if ":" in vip else f"{vip}:80")

    (hop,) = verdict.hops
    assert (hop.protocol, str(hop.address), hop.weight) == (HopProtocol.TCP, "192.0.2.9:80", 3)


async def test_fields_that_nobody_here_knows_are_skipped() -> None:
    port = port_list((80, 8080))[0].SerializeToString() + APP_PROTOCOL_HTTP2
    web = build.service(WEB.hostname, "10.96.0.1", ports=[wds.Port.FromString(port)])
    control_plane = b"\x3a\x0c\x0a\x0aistiod-abc"  # field 7 of a response
    message = build.response(web).SerializeToString() + control_plane
    store = Store()
    outcome = await Ingest(store, Counts()).take(message)

    assert outcome.accepted == {str(WEB): "v1"}
    assert store.service_at(at("10.96.0.1")) is store.service(WEB)
