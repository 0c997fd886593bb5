# SPDX-License-Identifier: Apache-2.0
"""A CNI agent: in a test's own loop, or as a program inside the realm of its namespaces.

cni.py SOCKET: takes orders, one JSON object per line, and answers each:
    accept                      the next proxy's hello, as hex
    waiting                     whether a proxy has connected that was not accepted
    add uid info netns          name, namespace and account; the path of a network namespace
    send data netns             a datagram in hex, with any number of namespaces
    keep, delete uid; snapshot
    ack                         the proxy's answer, or its end
    hang_up
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from tests.support.wait import DEADLINE_S
from ztunnel_py.proto import zds_pb2

_LONGEST = 1024


class Conversation:
    """One connection of a proxy."""

    def __init__(self, sock: socket.socket, hello: bytes) -> None:
        self._sock = sock
        self.hello = hello

    def send(self, data: bytes, *descriptors: int) -> None:
        """One datagram, with descriptors."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        self._sock.sendmsg([data], [rights] if descriptors else [])

    def add(self, uid: str, netns: int, info: tuple[str, str, str] | None) -> None:
        """AddWorkload; the info is name, namespace and service account."""
        request = zds_pb2.WorkloadRequest()
        request.add.uid = uid
        if info is not None:
            name, namespace, account = info
            request.add.workload_info.name = name
            request.add.workload_info.namespace = namespace
            request.add.workload_info.service_account = account
        self.send(request.SerializeToString(), netns)

    def keep(self, uid: str) -> None:
        """KeepWorkload."""
        keep = zds_pb2.KeepWorkload(uid=uid)
        self.send(zds_pb2.WorkloadRequest(keep=keep).SerializeToString())

    def delete(self, uid: str) -> None:
        """DelWorkload."""
        request = zds_pb2.WorkloadRequest()
        getattr(request, "del").uid = uid
        self.send(request.SerializeToString())

    def snapshot(self) -> None:
        """SnapshotSent."""
        sent = zds_pb2.SnapshotSent()
        self.send(zds_pb2.WorkloadRequest(snapshot_sent=sent).SerializeToString())

    async def answer(self) -> bytes:
        """The proxy's next datagram; empty at the end."""
        receiving = asyncio.get_running_loop().sock_recv(self._sock, _LONGEST)
        try:
            return await asyncio.wait_for(receiving, DEADLINE_S)
        except ConnectionResetError:
            return b""  # it went without having read everything

    async def ack(self) -> str:
        """What the proxy says went wrong; empty if nothing did."""
        data = await self.answer()
        assert data, "the proxy hung up"
        response = zds_pb2.WorkloadResponse.FromString(data)
        assert response.WhichOneof("payload") == "ack"
        return response.ack.error

    def hang_up(self) -> None:
        """Closes the connection."""
        self._sock.close()


class Cni:
    """Listens."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._sock.bind(str(path))
        self._sock.listen(8)
        self._path = path
        self._conversations: list[Conversation] = []

    async def accept(self) -> Conversation:
        """The next proxy that connects and says hello."""
        loop = asyncio.get_running_loop()
        sock, _ = await asyncio.wait_for(loop.sock_accept(self._sock), DEADLINE_S)
        hello = await asyncio.wait_for(loop.sock_recv(sock, _LONGEST), DEADLINE_S)
        self._conversations.append(Conversation(sock, hello))
        return self._conversations[-1]

    def is_waited_for(self) -> bool:
        """Whether somebody has connected that was not accepted."""
        return bool(select.select([self._sock], [], [], 0)[0])

    def close(self) -> None:
        """Listens no more, and hangs up everywhere."""
        self._sock.close()
        for conversation in self._conversations:
            conversation.hang_up()
        self._path.unlink(missing_ok=True)


# --- as a program


async def obey(cni: Cni, current: list[Conversation], order: dict[str, Any]) -> dict[str, Any]:
    """Does what a line says."""
    do = order.pop("do")
    if do == "accept":
        current[:] = [await cni.accept()]
        return {"hello": current[0].hello.hex()}
    if do == "waiting":
        return {"waiting": cni.is_waited_for()}
    (proxy,) = current
    with contextlib.ExitStack() as opened:
        descriptors = []
        for path in order.pop("netns", []):
            descriptors.append(os.open(path, os.O_RDONLY))
            opened.callback(os.close, descriptors[-1])
        match do:
            case "add":
                proxy.add(order["uid"], descriptors[0], order["info"])
            case "send":
                proxy.send(bytes.fromhex(order["data"]), *descriptors)
            case "ack":
                data = await proxy.answer()
                response = zds_pb2.WorkloadResponse.FromString(data)
                return {"ack": response.ack.error} if data else {"end": True}
            case _:
                getattr(proxy, do)(**order)
    return {}


async def main() -> None:
    """Takes orders until there are no more."""
    cni, current = Cni(Path(sys.argv[1])), list[Conversation]()
    print(json.dumps({"event": "ready"}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await obey(cni, current, json.loads(line))), flush=True)
    cni.close()


if __name__ == "__main__":
    asyncio.run(main())
