# SPDX-License-Identifier: Apache-2.0
"""The discovery client and a strict control plane, over real TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from tests.state.build import at
from tests.support.istiod.server import Istiod
from tests.support.wait import settle
from tests.xds import build
from tests.xds.conftest import HastyClock
from ztunnel_py import config
from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest
from ztunnel_py.rpc.server import Server
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.istiod.stream import Stream
    from tests.xds.conftest import Discovery, Plane

A, B = build.uid("a"), build.uid("b")
BAD = build.resource(ADDRESS, "bad", b"\xff")


async def first_push(stream: Stream) -> None:
    """Everything that comes unasked."""
    await stream.opening()
    await stream.push(build.pod("a", "10.0.0.1"), build.service("web.test", "10.1.0.1"))
    await stream.accepted()
    await stream.push(build.policy("p"), type_url=AUTHORIZATION)
    await stream.accepted()


async def synced(plane: Plane, clock: HastyClock | None = None) -> tuple[Discovery, Stream]:
    """A client that is ready, and its stream."""
    discovery = plane.discover(clock)
    stream = await plane.istiod.stream()
    await first_push(stream)
    await discovery.synced()
    return discovery, stream


async def test_what_is_pushed_is_known(plane: Plane) -> None:
    discovery, stream = await synced(plane)

    await stream.push(build.pod("b", "10.0.0.2"), removed=[A])
    await stream.accepted()

    assert discovery.uids() == {B}
    assert discovery.store.workload_at(at("10.0.0.2")) is not None
    assert list(discovery.store.policies()) == ["ns/p"]


@pytest.mark.spec("state-14")
async def test_a_malformed_resource_is_refused_by_name_and_the_valid_one_applied(
    plane: Plane,
) -> None:
    discovery = plane.discover()
    stream = await plane.istiod.stream()
    await stream.opening()

    await stream.push(BAD, build.pod("a", "10.0.0.1"))
    said = await stream.refused()

    assert said.startswith("bad: ")
    assert discovery.uids() == {A}


@pytest.mark.spec("state-18", "state-20")
async def test_a_new_stream_lists_what_was_accepted_with_versions_and_nothing_else(
    plane: Plane,
) -> None:
    discovery = plane.discover()
    stream = await plane.istiod.stream()
    opening = await stream.opening()
    assert [list(opening[url].initial_resource_versions) for url in opening] == [[], []]
    await stream.push(build.pod("a", "10.0.0.1", version="7"), build.pod("b", "10.0.0.2"), BAD)
    await stream.refused()
    await stream.push(build.policy("p"), type_url=AUTHORIZATION)
    await stream.accepted()
    await stream.push(removed=[B])
    await stream.accepted()

    stream.end()
    opening = await (await plane.istiod.stream()).opening()

    assert dict(opening[ADDRESS].initial_resource_versions) == {A: "7"}
    assert dict(opening[AUTHORIZATION].initial_resource_versions) == {"ns/p": ""}
    assert discovery.uids() == {A}


# --- endings


@pytest.mark.spec("state-23")
async def test_a_stream_that_ends_in_order_is_followed_by_another_at_once(plane: Plane) -> None:
    discovery, stream = await synced(plane, clock := HastyClock())

    stream.end()
    await plane.istiod.stream()

    assert discovery.counts.terminations == {"Complete": 1}
    assert clock.pauses == []


@pytest.mark.parametrize(
    ("code", "message", "reason", "pauses"),
    [
        pytest.param(
            grpc.StatusCode.UNAVAILABLE,
            "received prior goaway: x",
            "Reconnect",
            [0.01, 0.01],
            marks=pytest.mark.spec("state-22"),
        ),
        (grpc.StatusCode.UNKNOWN, "", "Reconnect", [0.01, 0.01]),
        (grpc.StatusCode.UNAVAILABLE, "overloaded", "Error", [0.02, 0.04]),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "4194305 > 4194304", "Error", [0.02, 0.04]),
    ],
)
async def test_a_stream_that_fails_is_followed_by_another_after_a_pause(
    code: grpc.StatusCode, message: str, reason: str, pauses: list[float], plane: Plane
) -> None:
    discovery, stream = await synced(plane, clock := HastyClock())

    stream.end(code, message)
    stream = await plane.istiod.stream()
    await stream.opening()
    await stream.push()
    await stream.accepted()
    stream.end(code, message)
    await plane.istiod.stream()

    assert discovery.counts.terminations == {reason: 2}
    assert clock.pauses == pauses


async def test_a_server_that_refuses_every_stream_is_asked_less_and_less_often(
    plane: Plane,
) -> None:
    plane.istiod.refuses = grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure"

    discovery = plane.discover(clock := HastyClock())
    await discovery.ended("ConnectionError", 4)

    assert clock.pauses[:4] == pytest.approx([0.02, 0.04, 0.08, 0.16])


async def test_a_server_that_says_nothing_is_asked_less_and_less_often(plane: Plane) -> None:
    discovery = plane.discover(clock := HastyClock())

    for _ in range(4):
        (await plane.istiod.stream()).end()
    await discovery.ended("ConnectionError", 4)

    assert clock.pauses[:4] == pytest.approx([0.02, 0.04, 0.08, 0.16])


async def test_a_server_that_is_not_there_yet_is_found_when_it_comes(
    plane: Plane,
) -> None:
    await plane.istiod.stop()
    discovery = plane.discover(clock := HastyClock())
    await discovery.ended("ConnectionError", 3)

    await plane.istiod.start()
    await first_push(await plane.istiod.stream())

    await discovery.synced()
    assert clock.pauses[:3] == pytest.approx([0.02, 0.04, 0.08])


@pytest.mark.spec("state-24")
async def test_what_is_known_stays_while_the_server_is_gone(plane: Plane) -> None:
    discovery, _ = await synced(plane)
    epochs = discovery.store.discovery_epoch, discovery.store.policy_epoch
    assert discovery.client.is_connected

    await plane.istiod.stop()
    await discovery.ended("ConnectionError", 3)

    assert not discovery.client.is_connected
    assert discovery.uids() == {A}
    assert discovery.store.service_at(at("10.1.0.1")) is not None
    assert list(discovery.store.policies()) == ["ns/p"]
    assert (discovery.store.discovery_epoch, discovery.store.policy_epoch) == epochs
    assert discovery.client.synced.is_set()


# --- readiness


@pytest.mark.parametrize("type_url", [ADDRESS, AUTHORIZATION])
async def test_ready_only_after_both_types_were_accepted(type_url: str, plane: Plane) -> None:
    discovery = plane.discover()
    stream = await plane.istiod.stream()
    await stream.opening()

    await stream.push(type_url=type_url)
    await stream.accepted()
    await settle()
    assert not discovery.client.synced.is_set()

    await stream.push(type_url=ADDRESS if type_url == AUTHORIZATION else AUTHORIZATION)
    await discovery.synced()


@pytest.mark.spec("state-26", "ops-101")
async def test_a_refused_first_push_has_to_be_followed_by_an_accepted_one(plane: Plane) -> None:
    discovery = plane.discover()
    stream = await plane.istiod.stream()
    await stream.opening()
    await stream.push(type_url=AUTHORIZATION)
    await stream.accepted()
    await stream.push(BAD)
    await stream.refused()
    await settle()
    assert not discovery.client.synced.is_set()

    await stream.push(build.pod("a", "10.0.0.1"))

    await discovery.synced()


# --- who asks, and whom


@pytest.mark.spec("state-1", "state-2")
@pytest.mark.parametrize(
    ("environ", "dialled"),
    [
        ({}, "localhost:15012"),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "istiod.istio-system.svc:15012"),
        ({"XDS_ADDRESS": "istiod.x.svc:15012"}, "istiod.x.svc:15012"),
        ({"XDS_ADDRESS": "https://[::1]:1"}, "[::1]:1"),
    ],
)
def test_istiod_is_dialled_where_it_usually_is_or_is_said_to_be(
    environ: dict[str, str], dialled: str, tmp_path: Path
) -> None:
    address = Server.discovery(config.load(environ, tmp_path)).address

    assert str(address) == f"https://{dialled}"
    assert dialled.endswith(f":{address.port}")


@pytest.mark.spec("state-8", "state-10")
async def test_requests_carry_cluster_and_configured_headers(plane: Plane) -> None:
    plane.discover(AUTH_TOKEN="t", ISTIO_META_CLUSTER_ID="c1", XDS_HEADER_FOO="bar")

    stream = await plane.istiod.stream()
    opening = await stream.opening()

    stream.check_metadata({"clusterid": "c1", "foo": "bar", "authorization": "Bearer t"})
    node = opening[ADDRESS].node
    assert node.metadata.fields["CLUSTER_ID"].string_value == "c1"
    assert node.id == "ztunnel~1.1.1.1~p.n~n.svc.cluster.local"


@pytest.mark.spec("state-11")
async def test_the_token_file_is_read_for_every_stream(plane: Plane, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    plane.discover(AUTH_TOKEN=str(token))
    stream = await plane.istiod.stream()
    stream.check_metadata({"authorization": "Bearer first"})
    await stream.opening()
    await stream.push()
    await stream.accepted()

    token.write_text("second")
    stream.end()

    (await plane.istiod.stream()).check_metadata({"authorization": "Bearer second"})


@pytest.mark.spec("state-12")
async def test_a_certificate_for_the_second_name_only_is_accepted_if_there_is_one(
    plane: Plane,
) -> None:
    await plane.istiod.stop()
    plane.istiod.names = ("istiod.elsewhere",)
    await plane.istiod.start()

    refusing = plane.discover()
    await refusing.ended("ConnectionError", 2)
    plane.discover(ALT_XDS_HOSTNAME="istiod.elsewhere")

    assert await (await plane.istiod.stream()).opening()


@pytest.mark.spec("ops-48")
async def test_a_new_root_is_used_at_the_next_connection(plane: Plane) -> None:
    discovery, _ = await synced(plane)
    await plane.istiod.stop()
    plane.istiod.authority = Istiod().authority
    await plane.istiod.start()
    await discovery.ended("ConnectionError", 3)

    plane.roots.write_bytes(plane.istiod.authority.roots_pem)

    assert await (await plane.istiod.stream()).opening()


async def test_later_requests_name_no_node(plane: Plane) -> None:
    plane.discover()
    stream = await plane.istiod.stream()
    await stream.opening()

    await stream.push(nonce="n7")

    assert await stream.request() == DeltaDiscoveryRequest(type_url=ADDRESS, response_nonce="n7")
