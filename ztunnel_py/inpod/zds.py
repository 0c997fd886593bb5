# SPDX-License-Identifier: Apache-2.0
"""Messages of the CNI agent: one protobuf message per datagram, one descriptor with an Add.

Source: spec identity-ops, sections B.1, B.2 and B.4; ztunnel src/inpod/protocol.rs.
"""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from ztunnel_py.netns import Netns
from ztunnel_py.proto import zds_pb2
from ztunnel_py.state.workload import WorkloadInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST = 1024
"""Bytes of a datagram."""
HELLO: bytes = zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString()
_DESCRIPTORS = 8
"""How many are taken, so that they can be closed; the kernel closes what is beyond."""
_CUT = socket.MSG_TRUNC | socket.MSG_CTRUNC


class ReadError(Exception):
    """A datagram that is not a message; the connection is of no use any more."""


class Add(NamedTuple):
    """A pod is there, and this is its namespace."""

    uid: str
    info: WorkloadInfo | None
    """None where it is missing, which is against the protocol."""
    netns: Netns


class Keep(NamedTuple):
    """A pod of an earlier connection is still there."""

    uid: str


class Delete(NamedTuple):
    """A pod is gone."""

    uid: str


class SnapshotSent(NamedTuple):
    """All pods that there are have been named."""


Message = Add | Keep | Delete | SnapshotSent


def receive(sock: socket.socket) -> Message | None:
    """The next message; None at the end of the connection.

    Raises:
        BlockingIOError: nothing is there yet.
        OSError: the connection is broken.
        ReadError: it is not a message; descriptors that came with it are closed.
    """
    ancillary = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
    data, control, flags, _ = sock.recvmsg(LONGEST, ancillary, socket.MSG_CMSG_CLOEXEC)
    descriptors = _descriptors(control)
    try:
        if not data and not descriptors:
            return None
        if flags & _CUT:
            raise ReadError("the message was cut off")
        return _message(data, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def answer(error: str = "") -> bytes:
    """The datagram that answers a message; what is wrong is cut where it is too long."""
    ack = zds_pb2.Ack(error=error[: LONGEST // 4])
    return zds_pb2.WorkloadResponse(ack=ack).SerializeToString()


def _descriptors(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _message(data: bytes, descriptors: list[int]) -> Message:
    try:
        request = zds_pb2.WorkloadRequest.FromString(data)
    except DecodeError as error:
        raise ReadError("it cannot be decoded") from error
    kind = request.WhichOneof("payload")
    expected = int(kind == "add")
    if kind is not None and len(descriptors) != expected:
        raise ReadError(f"{kind} with {len(descriptors)} descriptors, expected {expected}")
    match kind:
        case "add":
            return _add(request.add, descriptors[0])
        case "keep":
            return Keep(request.keep.uid)
        case "del":
            return Delete(getattr(request, "del").uid)
        case "snapshot_sent":
            return SnapshotSent()
        case _:
            raise ReadError("it has no payload that is known")


def _add(add: zds_pb2.AddWorkload, descriptor: int) -> Add:
    info = None
    if add.HasField("workload_info"):
        said = add.workload_info
        info = WorkloadInfo(said.name, said.namespace, said.service_account)
    return Add(add.uid, info, Netns(descriptor))
