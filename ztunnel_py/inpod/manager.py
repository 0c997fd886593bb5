# SPDX-License-Identifier: Apache-2.0
"""Which pods have a proxy: what the CNI agent says is made so, message by message.

Pods that run survive the connection to the agent: a new one begins with a snapshot, and whoever is
not named in it is gone. What could not be started is tried again while the connection lasts.
Source: spec identity-ops, sections B.4, B.5, B.7 and B.9; ztunnel src/inpod/statemanager.rs.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ztunnel_py.inpod.zds import Add, Delete, Keep, SnapshotSent
from ztunnel_py.telemetry.log import Display, logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.inpod.zds import Message
    from ztunnel_py.netns import Netns
    from ztunnel_py.state.workload import WorkloadInfo

RETRY_S = 5.0

log = logger("ztunnel::inpod")


class ProtocolError(Exception):
    """The agent broke the rules: nothing that it says can be relied on."""


class Pods(Protocol):
    """What starts and stops the proxy of one pod."""

    def start(self, uid: str, info: WorkloadInfo, netns: Netns) -> None:
        """All listeners exist when it returns.

        Raises:
            OSError: they cannot be had.
        """

    def stop(self, uid: str) -> None:
        """Everything of that pod ends at once."""


class PodState(enum.Enum):
    """How a pod stands; the values are those of dumps."""

    PENDING = "Pending"
    UP = "Up"


class PodStatus(NamedTuple):
    """A pod, for the dump."""

    uid: str
    state: PodState
    info: WorkloadInfo


class _Pod(NamedTuple):
    info: WorkloadInfo
    netns: Netns


class Manager:
    """The pods of one node.

    Args:
        is_settled: told whether everybody who should run does, whenever that may have changed.
    """

    def __init__(self, pods: Pods, clock: Clock, is_settled: Callable[[bool], None]) -> None:
        self.started = self.stopped = 0
        """Proxies so far."""
        self._pods = pods
        self._clock = clock
        self._is_settled = is_settled
        self._running: dict[str, _Pod] = {}
        self._pending: dict[str, _Pod] = {}
        self._named: set[str] = set()
        """Who is in the snapshot."""
        self._has_snapshot = False
        self._retry: Timer | None = None

    @property
    def running(self) -> int:
        """How many pods are served."""
        return len(self._running)

    @property
    def pending(self) -> int:
        """How many could not be started yet."""
        return len(self._pending)

    def statuses(self) -> Iterator[PodStatus]:
        """All pods."""
        for uid, pod in self._pending.items():
            yield PodStatus(uid, PodState.PENDING, pod.info)
        for uid, pod in self._running.items():
            if uid not in self._pending:
                yield PodStatus(uid, PodState.UP, pod.info)

    def namespaces(self) -> tuple[Netns, ...]:
        """Where pods are served."""
        return tuple(pod.netns for pod in self._running.values())

    def begin(self) -> None:
        """A connection to the agent begins: it will name all pods."""
        self._named.clear()
        self._forget_pending()
        self._has_snapshot = False

    def end(self) -> None:
        """The connection is gone; who runs goes on."""
        self.begin()
        self._is_settled(False)

    def take(self, message: Message) -> str:
        """Does what the agent says; returns what failed, empty if nothing did.

        Raises:
            ProtocolError: it must not say that, now or at all.
        """
        match message:
            case Add():
                problem = self._add(message)
            case Keep(uid):
                problem = self._keep(uid)
            case Delete(uid):
                problem = self._delete(uid)
            case SnapshotSent():
                problem = self._reconcile()
        self._is_settled(self._has_snapshot and not self._pending)
        return problem

    # --- messages

    def _add(self, add: Add) -> str:
        uid, info, netns = add
        if info is None:
            raise ProtocolError("workload_info is required for AddWorkload")
        if not self._has_snapshot:
            self._named.add(uid)
        found = self._running.get(uid)
        if found is not None and found.netns.is_same(netns):
            self._pending.pop(uid, None)
            return ""
        if found is not None:
            self._stop(uid)  # the newest namespace is the pod's
        return self._start(uid, _Pod(info, netns))

    def _keep(self, uid: str) -> str:
        if self._has_snapshot:
            raise ProtocolError("KeepWorkload after the snapshot")
        self._named.add(uid)
        return ""

    def _delete(self, uid: str) -> str:
        self._pending.pop(uid, None)
        self._named.discard(uid)
        if self._has_snapshot and uid in self._running:
            self._stop(uid)
        return ""  # before the snapshot is complete it counts as not named

    def _reconcile(self) -> str:
        if self._has_snapshot:
            raise ProtocolError("a second SnapshotSent")
        self._has_snapshot = True
        for uid in [uid for uid in self._running if uid not in self._named]:
            self._stop(uid)
        self._named.clear()
        return ""

    # --- proxies

    def _start(self, uid: str, pod: _Pod) -> str:
        fields = {"uid": Display(uid), "workload": Display(str(pod.info))}
        try:
            self._pods.start(uid, pod.info, pod.netns)
        except OSError as error:
            problem = f"failed to start proxy : {error}"
            log.warn(problem, fields)
            self._pending[uid] = pod
            self._arm_retry()
            return problem
        self._pending.pop(uid, None)
        self._running[uid] = pod
        self.started += 1
        log.info("pod received, proxy started", fields)
        return ""

    def _stop(self, uid: str) -> None:
        pod = self._running.pop(uid)
        self._pods.stop(uid)
        pod.netns.close()
        self.stopped += 1
        log.info("pod is gone, proxy stopped", {"uid": Display(uid), "workload": str(pod.info)})

    def _arm_retry(self) -> None:
        if self._retry is None:
            self._retry = self._clock.call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        for uid, pod in list(self._pending.items()):
            self._start(uid, pod)
        self._is_settled(self._has_snapshot and not self._pending)

    def _forget_pending(self) -> None:
        self._pending.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
