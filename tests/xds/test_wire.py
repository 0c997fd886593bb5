# SPDX-License-Identifier: Apache-2.0
"""Messages are walked as protobuf would read them, and made so that protobuf reads them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xds import build
from ztunnel_py.proto.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    Node,
)
from ztunnel_py.xds import wire
from ztunnel_py.xds.wire import MalformedError

TEXTS = st.text(max_size=20)
RESPONSES = st.builds(
    DeltaDiscoveryResponse,
    system_version_info=TEXTS,
    resources=st.lists(st.builds(build.resource, TEXTS, TEXTS, st.binary(max_size=300), TEXTS)),
    type_url=TEXTS,
    nonce=TEXTS,
    removed_resources=st.lists(TEXTS),
)


def read(message: bytes) -> DeltaDiscoveryResponse:
    """The parts that are used, put together again."""
    found = DeltaDiscoveryResponse()
    for number, content in wire.walk(memoryview(message)):
        match number:
            case wire.RESOURCES:
                found.resources.append(wire.resource(content))
            case wire.TYPE_URL:
                found.type_url = wire.text(content)
            case wire.NONCE:
                found.nonce = wire.text(content)
            case wire.REMOVED_RESOURCES:
                found.removed_resources.append(wire.text(content))
    return found


@given(RESPONSES)
def test_a_walk_finds_what_protobuf_finds(response: DeltaDiscoveryResponse) -> None:
    found = read(response.SerializeToString())

    response.ClearField("system_version_info")
    assert found == response


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_or_refused_as_malformed(message: bytes) -> None:
    with contextlib.suppress(MalformedError):
        read(message)


@given(RESPONSES.filter(lambda r: len(r.resources) > 0), st.data())
def test_a_message_that_is_cut_within_its_resources_is_refused(
    response: DeltaDiscoveryResponse, data: st.DataObject
) -> None:
    response = DeltaDiscoveryResponse(resources=response.resources[:1])
    message = response.SerializeToString()
    cut = data.draw(st.integers(1, len(message) - 1))

    with pytest.raises(MalformedError):
        read(message[:cut])


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\x0b", "field 1 is of unknown kind 3"),
        (b"\xff" * 11, "a number is cut short"),
        (b"\x12\x05abc", "field 2 is cut short"),
        (b"\x09abc", "field 1 is cut short"),
        (b"\x22\x01\xff", "a text is not UTF-8"),
        (b"\x12\x01\x0b", "a resource cannot be parsed"),
    ],
)
def test_what_is_wrong_is_said(message: bytes, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        read(message)


def test_unknown_fields_of_every_kind_are_skipped() -> None:
    unknown = b"\x98\x06\x01" + b"\x99\x06" + bytes(8) + b"\x9a\x06\x02ab" + b"\x9d\x06" + bytes(4)

    assert read(unknown + b"\x2a\x02n7" + unknown).nonce == "n7"


@pytest.mark.parametrize("count", [0, 1, wire.VERSIONS_PER_PART, 3 * wire.VERSIONS_PER_PART + 1])
def test_parts_of_a_request_are_one_request(count: int) -> None:
    head = DeltaDiscoveryRequest(node=Node(id="me"), type_url="t")
    versions = {f"name-{i}": f"v{i}" for i in range(count)}

    parts = list(wire.request_parts(head, versions))

    found = DeltaDiscoveryRequest.FromString(b"".join(parts))
    assert dict(found.initial_resource_versions) == versions
    assert (found.node.id, found.type_url) == ("me", "t")
    assert len(parts) == 1 + -(-count // wire.VERSIONS_PER_PART)
