# SPDX-License-Identifier: Apache-2.0
"""Control planes that go wrong: what is known stays, what is usable is used, nobody restarts."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.state.build import at
from tests.support.istiod.cable import cable
from tests.support.istiod.mesh import Mesh
from tests.support.rpc import server_certificate
from tests.support.wait import until
from tests.xds import build
from tests.xds.conftest import HastyClock
from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.istiod.stream import Stream
    from tests.xds.conftest import Discovery, Plane

A = build.uid("a")
MANY = [build.pod(f"p{i}", f"10.1.{i >> 8}.{i & 255}") for i in range(20_000)]


async def synced(plane: Plane, **environ: str) -> tuple[Discovery, Stream]:
    """A client that is ready and knows one pod, and its stream."""
    discovery = plane.discover(HastyClock(), **environ)
    stream = await plane.istiod.stream()
    await stream.opening()
    await stream.push(build.pod("a", "10.0.0.1"))
    await stream.accepted()
    await stream.push(type_url=AUTHORIZATION)
    await stream.accepted()
    await discovery.synced()
    return discovery, stream


async def works(plane: Plane, discovery: Discovery) -> None:
    """A new stream comes by itself, still knows the pod, and takes more."""
    stream = await plane.istiod.stream()
    opening = await stream.opening()
    assert A in opening[ADDRESS].initial_resource_versions
    await stream.push(build.pod("b", "10.0.0.2"))
    await stream.accepted()
    assert discovery.uids() >= {A, build.uid("b")}


# --- streams


async def test_a_push_that_is_cut_is_begun_anew(plane: Plane) -> None:
    plane.istiod.serve = Mesh([*MANY, build.policy("p")]).serve
    async with cable(plane.istiod.port) as wire:
        wire.cut_after(1_000_000)
        discovery = plane.discover(HastyClock(), XDS_ADDRESS=wire.address)

        await discovery.synced()

    assert wire.received > 3_000_000
    assert sum(discovery.counts.terminations.values()) == 1
    assert len(discovery.uids()) == len(MANY)
    assert discovery.counts.messages == {ADDRESS: 1, AUTHORIZATION: 1}


async def test_a_push_that_trickles_in_is_taken_when_it_is_whole(plane: Plane) -> None:
    plane.istiod.serve = Mesh([*MANY[:5_000], build.policy("p")]).serve
    async with cable(plane.istiod.port) as wire:
        wire.pause_s = 0.001
        discovery = plane.discover(XDS_ADDRESS=wire.address)
        await until(lambda: wire.received > 200_000, "a part of it")
        assert discovery.uids() == set()

        await discovery.synced()

    assert discovery.counts.messages == {ADDRESS: 1, AUTHORIZATION: 1}
    assert len(discovery.uids()) == 5_000


async def test_a_response_that_has_come_is_applied_even_if_the_server_leaves_meanwhile(
    plane: Plane,
) -> None:
    discovery, stream = await synced(plane)

    await stream.push(*MANY)
    await until(lambda: len(discovery.uids()) > 1, "the first slice")
    await plane.istiod.stop()

    await until(lambda: len(discovery.uids()) == len(MANY) + 1, "all of it")
    await plane.istiod.start()
    opening = await (await plane.istiod.stream()).opening()
    assert len(opening[ADDRESS].initial_resource_versions) == len(MANY) + 1


async def test_a_nonce_that_comes_twice_is_answered_twice(plane: Plane) -> None:
    discovery, stream = await synced(plane)

    for name in ("b", "c"):
        await stream.push(build.pod(name, "10.0.0.2"), nonce="same")
        answer = await stream.request()
        assert answer == DeltaDiscoveryRequest(type_url=ADDRESS, response_nonce="same")

    assert discovery.uids() == {A, build.uid("b"), build.uid("c")}


async def test_a_response_of_unknown_type_is_accepted_and_the_next_one_applied(
    plane: Plane,
) -> None:
    discovery, stream = await synced(plane)

    await stream.push(build.pod("b", "10.0.0.2"), type_url="type.googleapis.com/x", nonce="n")
    assert await stream.request() == DeltaDiscoveryRequest(
        type_url="type.googleapis.com/x", response_nonce="n"
    )
    await stream.push(build.pod("c", "10.0.0.3"))
    await stream.accepted()

    assert discovery.uids() == {A, build.uid("c")}


@pytest.mark.parametrize("message", [b"\xff", b"\x12\x7f", b"\x12\x02\x0b\x0b"], ids=repr)
async def test_a_message_that_is_no_response_ends_the_stream_and_nothing_else(
    message: bytes, plane: Plane
) -> None:
    discovery, stream = await synced(plane)

    await stream.write(message)

    await works(plane, discovery)
    assert discovery.counts.terminations == {"Error": 1}


async def test_an_address_of_five_bytes_is_refused_and_its_neighbours_applied(
    plane: Plane,
) -> None:
    discovery, stream = await synced(plane)

    bad = build.pod("bad", addresses=[b"\x0a\0\0\0\x07"])
    await stream.push(build.pod("b", "10.0.0.2"), bad, build.pod("c", "10.0.0.3"))

    assert await stream.refused() == f"{bad.name}: an address has 5 bytes, neither 4 nor 16"
    assert discovery.uids() == {A, build.uid("b"), build.uid("c")}


async def test_a_hundred_thousand_removals_stall_nobody(plane: Plane) -> None:
    discovery, stream = await synced(plane)
    await stream.push(*MANY)
    await stream.accepted()
    known = []

    async def look() -> None:
        while True:
            known.append(len(discovery.uids()))
            await asyncio.sleep(0)

    looking = asyncio.ensure_future(look())
    await stream.push(removed=[build.uid(f"p{i}") for i in range(100_000)])
    await stream.accepted()
    looking.cancel()

    most_at_once = max(before - after for before, after in itertools.pairwise(known))
    assert 0 < most_at_once < len(MANY) / 2
    assert discovery.uids() == {A}


async def test_a_stream_that_a_server_resets_in_anger_is_opened_again(plane: Plane) -> None:
    discovery, stream = await synced(plane)

    stream.end(grpc.StatusCode.INTERNAL, "a bug")

    await works(plane, discovery)
    assert discovery.counts.terminations == {"Error": 1}


@pytest.mark.spec("state-28")
@pytest.mark.timeout(120)
async def test_a_response_of_150_mib_is_accepted(plane: Plane) -> None:
    discovery, stream = await synced(plane)
    size = 150 << 20
    padding = b"\x9a\x7f" + b"\x80\x80\x40" + bytes(1 << 20)  # a field nobody knows, of 1 MiB

    pod = build.pod("b", "10.0.0.2")
    pod.resource.value += padding
    big = [build.resource(ADDRESS, pod.name, pod.resource.value) for _ in range(size >> 20)]
    await stream.push(*big)
    await stream.accepted()

    assert discovery.counts.message_bytes[ADDRESS] > size
    assert discovery.store.workload_at(at("10.0.0.2")) is not None


async def test_a_response_over_the_limit_ends_the_stream_before_it_is_read(plane: Plane) -> None:
    discovery, stream = await synced(plane)

    writing = asyncio.ensure_future(stream.write(bytes(201 << 20)))

    await works(plane, discovery)
    assert discovery.counts.terminations == {"Error": 1}
    await asyncio.wait([writing])
    writing.exception()


async def test_a_mesh_too_large_to_be_claimed_is_heard_anew_and_what_is_gone_goes(
    plane: Plane,
) -> None:
    names = [f"a-name-that-takes-much-room-in-a-request-{'x' * 200}-{i}" for i in range(20_000)]
    pods = [build.pod(name, uid=build.uid(name)) for name in names]
    mesh = Mesh([*pods, build.service("web.test", "10.1.0.1"), build.policy("p")])
    plane.istiod.serve = mesh.serve
    discovery = plane.discover(HastyClock())
    await discovery.synced()
    service = discovery.store.service_at(at("10.1.0.1"))

    await plane.istiod.stop()
    gone = [build.uid(name) for name in names[1:]]
    mesh.change(build.policy("q"), removed=[*gone, "ns/web.test", "ns/p"])
    await plane.istiod.start()
    await until(lambda: list(discovery.store.policies()) == ["ns/q"], "the new policy only")

    assert service is not None
    assert discovery.uids() == {build.uid(names[0])}
    assert discovery.store.service_at(at("10.1.0.1")) is None
    await plane.istiod.stop()
    plane.istiod.serve = None
    await plane.istiod.start()
    opening = await (await plane.istiod.stream()).opening()
    assert list(opening[ADDRESS].initial_resource_versions) == [build.uid(names[0])]


# --- credentials


@pytest.mark.parametrize("fault", ["empty", "gone", "a line"])
async def test_without_a_token_nothing_is_asked_until_there_is_one(
    fault: str, plane: Plane, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    discovery, stream = await synced(plane, AUTH_TOKEN=str(token))
    stream.check_metadata({"authorization": "Bearer first"})

    match fault:
        case "empty":
            token.write_text("")
        case "gone":
            token.unlink()
        case _:
            token.write_text("second\n")
    stream.end()
    await discovery.ended("ConnectionError", 3)
    assert discovery.uids() == {A}
    token.write_text("second")

    await works(plane, discovery)


@pytest.mark.parametrize("fault", ["half", "empty", "gone", "others"])
async def test_with_broken_roots_nobody_is_trusted_until_they_are_whole(
    fault: str, plane: Plane
) -> None:
    discovery, stream = await synced(plane)
    whole = plane.roots.read_bytes()

    match fault:
        case "half":
            plane.roots.write_bytes(whole[: len(whole) // 2])
        case "empty":
            plane.roots.write_bytes(b"")
        case "gone":
            plane.roots.unlink()
        case _:
            stranger = type(plane.istiod.authority)()
            plane.roots.write_bytes(server_certificate(stranger, "localhost").roots_pem)
    stream.end()
    await discovery.ended("ConnectionError" if fault == "others" else "Error", 3)
    assert discovery.uids() == {A}
    plane.roots.write_bytes(whole)

    await works(plane, discovery)
