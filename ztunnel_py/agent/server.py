# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the ZDS protocol: tells proxies of pods, one message at a time.

Every proxy that connects hears of all pods first. Later ones go to the proxy that connected last,
departures to all of them. Source: spec identity-ops, sections B.3 and B.11.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from ztunnel_py.proto import zds_pb2
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

    from ztunnel_py.netns import Netns
    from ztunnel_py.state.workload import WorkloadInfo

ANSWER_S = 5.0
"""For the hello and for each answer."""
QUEUED = 100
_LONGEST = 1024

log = logger("ztunnel::agent")


class RefusedError(Exception):
    """A proxy could not do what it was told, or there is none; the text says which."""


class KnownPod(NamedTuple):
    """A pod as proxies hear of it."""

    uid: str
    info: WorkloadInfo
    netns: Netns


class _Request(NamedTuple):
    message: bytes
    descriptor: int | None
    done: asyncio.Future[str]


class Server:
    """Listens for proxies at `path`, which is made anew.

    Args:
        pods: those of the snapshot.
        refused: told what a proxy said against a pod of its snapshot.
    """

    def __init__(
        self,
        path: Path,
        pods: Callable[[], Iterable[KnownPod]],
        refused: Callable[[str, str], None],
    ) -> None:
        self._path = path
        self._pods = pods
        self._refused = refused
        self._proxies: list[_Proxy] = []
        """Those that are connected, the latest last."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._sock: socket.socket | None = None

    @property
    def proxies(self) -> int:
        """How many are connected."""
        return len(self._proxies)

    def open(self) -> None:
        """Listens; whoever owned the path before is gone.

        Raises:
            OSError: it cannot be listened at.
        """
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._sock.bind(str(self._path))
        self._path.chmod(0o600)
        self._sock.listen()
        self._spawn(self._accept(self._sock))

    async def close(self) -> None:
        """Hangs up, and listens no more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._sock is not None:
            self._sock.close()
            self._path.unlink(missing_ok=True)

    async def add(self, pod: KnownPod) -> None:
        """Tells the latest proxy of a pod.

        Raises:
            RefusedError: it cannot serve it, or there is no proxy.
        """
        if not self._proxies:
            raise RefusedError("no proxy is connected")
        await self._proxies[-1].ask(_add(pod), pod.netns.fileno())

    async def delete(self, uid: str) -> None:
        """Tells all proxies that a pod is gone; who does not hear it hears the next snapshot."""
        request = zds_pb2.WorkloadRequest()
        getattr(request, "del").uid = uid
        for proxy in list(self._proxies):
            try:
                await proxy.ask(request.SerializeToString())
            except RefusedError as error:
                log.warn(f"{uid}: {error}")

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listening)
            self._spawn(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        proxy = _Proxy(sock)
        self._proxies.append(proxy)
        try:
            with sock:
                await self._converse(proxy)
        except (OSError, TimeoutError, DecodeError, RefusedError) as error:
            log.warn(f"the connection of a proxy ends: {error or type(error).__name__}")
        finally:
            self._proxies.remove(proxy)
            proxy.hang_up()

    async def _converse(self, proxy: _Proxy) -> None:
        version = await proxy.hello()
        log.info(f"a proxy has connected, version {version}")
        for pod in self._pods():
            if problem := await proxy.exchange(_add(pod), pod.netns.fileno()):
                log.warn(f"the proxy cannot serve {pod.info}: {problem}")
                self._refused(pod.uid, problem)
        sent = zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent())
        if problem := await proxy.exchange(sent.SerializeToString()):
            log.warn(f"the proxy does not take the snapshot: {problem}")
        await proxy.run()


class _Proxy:
    """A connected proxy."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._requests: asyncio.Queue[_Request] = asyncio.Queue(QUEUED)
        self._is_gone = False

    async def hello(self) -> int:
        """The version that it speaks."""
        hello = zds_pb2.ZdsHello.FromString(await self._receive())
        return int(hello.version)

    async def ask(self, message: bytes, descriptor: int | None = None) -> None:
        """Queues a message and waits for its answer.

        Raises:
            RefusedError: it was not taken.
        """
        if self._is_gone or self._requests.full():
            raise RefusedError("the proxy does not listen")
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(_Request(message, descriptor, done))
        if problem := await done:
            raise RefusedError(problem)

    async def exchange(self, message: bytes, descriptor: int | None = None) -> str:
        """Sends a message; what the proxy says went wrong, empty if nothing did."""
        fds = array.array("i", [] if descriptor is None else [descriptor])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        self._sock.sendmsg([message], rights)
        return zds_pb2.WorkloadResponse.FromString(await self._receive()).ack.error

    async def run(self) -> None:
        """Sends what is queued, until the proxy hangs up or says something unasked."""
        while True:
            request = await self._wait()
            try:
                request.done.set_result(await self.exchange(request.message, request.descriptor))
            except (OSError, TimeoutError) as error:
                request.done.set_result(f"the proxy does not answer: {error}")
                raise

    def hang_up(self) -> None:
        """Whoever waits for an answer gets none."""
        self._is_gone = True
        while not self._requests.empty():
            self._requests.get_nowait().done.set_result("the proxy has hung up")

    async def _wait(self) -> _Request:
        """The next request; nothing may be said meanwhile."""
        loop = asyncio.get_running_loop()
        wanted = asyncio.ensure_future(self._requests.get())
        said = asyncio.ensure_future(loop.sock_recv(self._sock, _LONGEST))
        try:
            await asyncio.wait((wanted, said), return_when=asyncio.FIRST_COMPLETED)
            if said.done():
                raise RefusedError("it spoke unasked" if said.result() else "it has hung up")
            return wanted.result()
        finally:
            for waiting in (wanted, said):
                if not waiting.done():
                    waiting.cancel()
            await asyncio.gather(said, return_exceptions=True)

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        data = await asyncio.wait_for(loop.sock_recv(self._sock, _LONGEST), ANSWER_S)
        if not data:
            raise RefusedError("it has hung up")
        return data


def _add(pod: KnownPod) -> bytes:
    name, namespace, account = pod.info
    info = zds_pb2.WorkloadInfo(name=name, namespace=namespace, service_account=account)
    add = zds_pb2.AddWorkload(uid=pod.uid, workload_info=info)
    return zds_pb2.WorkloadRequest(add=add).SerializeToString()
