# SPDX-License-Identifier: Apache-2.0
"""Enrols pods: redirects their traffic, tells the proxy of them, and remembers that.

In this order, so that nothing passes uncaptured and nothing is captured that nobody serves for
longer than it takes to say so: rules, the proxy, health checks. When a pod leaves: health checks,
rules, the proxy. If the agent ends, everything stays as it is. Source: spec redirection, section 9.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from ztunnel_py.agent.enrolled import Enrolled, NetnsError, Place
from ztunnel_py.agent.server import KnownPod, RefusedError
from ztunnel_py.clock import pause
from ztunnel_py.errors import StartError
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ztunnel_py.agent.enrolled import StateFile
    from ztunnel_py.agent.server import Server
    from ztunnel_py.clock import Clock
    from ztunnel_py.netns import Netns
    from ztunnel_py.state.workload import WorkloadInfo

RETRY_S = 5.0

log = logger("ztunnel::agent")


class EnrolmentError(Exception):
    """It cannot be done; the text is for whoever asked."""


class Redirection(Protocol):
    """Rules in a namespace. All may take a while, and are called on a thread."""

    def apply(self, netns: Netns, options: Mapping[str, Any]) -> None:
        """Redirects; again is the same; what was half done is undone.

        Raises:
            Exception: the text says why it cannot be done.
        """

    def remove(self, netns: Netns) -> None:
        """Redirects no more.

        Raises:
            Exception: the text says what is left.
        """


class Probes(Protocol):
    """What lets health checks by this machine pass. All may take a while; called on a thread."""

    def open(self, pods: Mapping[str, Netns]) -> None:
        """Lets checks of these pods pass, by UID, and of no others.

        Raises:
            Exception: the text says why it cannot be done.
        """

    def add(self, uid: str, netns: Netns) -> None:
        """Lets them pass to one more.

        Raises:
            Exception: the text says why it cannot be done.
        """

    def remove(self, uid: str) -> None:
        """Lets them pass to one less.

        Raises:
            Exception: the text says what is left.
        """

    def close(self) -> None:
        """Takes everything away.

        Raises:
            Exception: the text says what is left.
        """


class Agent:
    """The pods of this machine that are enrolled."""

    def __init__(
        self, redirection: Redirection, probes: Probes | None, state: StateFile, clock: Clock
    ) -> None:
        """`probes`: None: health checks by this machine are captured like everything else."""
        self._redirection = redirection
        self._probes = probes
        self._state = state
        self._clock = clock
        self._enrolled: dict[str, Enrolled] = {}
        self._spaces: dict[str, Netns] = {}
        self._changing = asyncio.Lock()
        """One change at a time: rules, file and proxy must agree."""

    async def restore(self) -> None:
        """Takes up what was enrolled when the agent last ran, and repairs its rules.

        Raises:
            StartError: the file cannot be read, or health checks cannot be let pass.
        """
        for one in self._state.read():
            self._enrolled[one.uid] = one
            one.problem = "no proxy is connected"
            try:
                netns = self._spaces[one.uid] = one.place.open()
                await asyncio.to_thread(self._redirection.apply, netns, one.options)
            except NetnsError as error:
                one.problem = f"gone: {error}"
                log.warn(f"{one.uid} is enrolled, but {error}; `unenroll` forgets it")
            except Exception as error:  # it is served all the same: rules are there already
                log.warn(f"{one.uid}: its rules cannot be checked: {error}")
        if self._probes is not None:
            try:
                await asyncio.to_thread(self._probes.open, self._spaces)
            except Exception as error:
                raise StartError(f"health checks cannot be let pass: {error}") from error

    async def close(self) -> None:
        """Leaves pods as they are; without any, leaves nothing."""
        if self._probes is not None and not self._enrolled:
            try:
                await asyncio.to_thread(self._probes.close)
            except Exception as error:
                log.warn(f"rules for health checks are left on this machine: {error}")

    def pods(self) -> Iterator[KnownPod]:
        """Those whose namespace is there, for a proxy that connects."""
        for uid, netns in list(self._spaces.items()):
            self._enrolled[uid].problem = ""
            yield KnownPod(uid, self._enrolled[uid].info, netns)

    def refused(self, uid: str, problem: str) -> None:
        """A proxy cannot serve a pod."""
        if uid in self._enrolled:
            self._enrolled[uid].problem = problem

    def enrolled(self) -> list[Enrolled]:
        """All, by name."""
        return sorted(self._enrolled.values(), key=lambda one: one.uid)

    async def enroll(
        self, server: Server, info: WorkloadInfo, path: str, options: dict[str, Any]
    ) -> Enrolled:
        """Enrols the pod `info` whose namespace is at `path`; again is the same.

        A proxy that cannot serve it now is no error, but a `problem` of the result: it is told
        again every few seconds.

        Raises:
            EnrolmentError: it is not enrolled, and nothing has changed.
        """
        async with self._changing:
            try:
                place, netns = Place.of(path)
            except NetnsError as error:
                raise EnrolmentError(str(error)) from error
            one = Enrolled(*info, place, options)
            self._check_free(one)
            try:
                await asyncio.to_thread(self._redirection.apply, netns, options)
            except Exception as error:
                raise EnrolmentError(f"traffic cannot be redirected: {error}") from error
            self._enrolled[one.uid], self._spaces[one.uid] = one, netns
            self._state.write(self._enrolled.values())
            await self._tell(server, one)
            return one

    async def unenroll(self, server: Server, uid: str) -> Enrolled:
        """Gives a pod its plain network back.

        Raises:
            EnrolmentError: it is not enrolled, or its rules cannot be removed; then it still is.
        """
        async with self._changing:
            one = self._enrolled.get(uid)
            if one is None:
                raise EnrolmentError(f"{uid} is not enrolled")
            netns = self._spaces.get(uid)
            try:
                if self._probes is not None:
                    await asyncio.to_thread(self._probes.remove, uid)
                if netns is not None:
                    await asyncio.to_thread(self._redirection.remove, netns)
            except Exception as error:
                raise EnrolmentError(f"the rules cannot be removed: {error}") from error
            await server.delete(uid)
            del self._enrolled[uid]
            self._spaces.pop(uid, None)
            self._state.write(self._enrolled.values())
            return one

    async def keep_trying(self, server: Server) -> None:
        """Tells the proxy again of those that it does not serve, for ever."""
        while True:
            await pause(self._clock, RETRY_S)
            async with self._changing:
                for uid, one in self._enrolled.items():
                    if one.problem and uid in self._spaces:
                        await self._tell(server, one)

    def _check_free(self, one: Enrolled) -> None:
        for other in self._enrolled.values():
            if other.uid == one.uid and other.place != one.place and other.uid in self._spaces:
                text = f"{one.uid} is enrolled with {other.place.path}: unenroll it first"
                raise EnrolmentError(text)
            is_there = (other.place.device, other.place.inode) == (
                one.place.device,
                one.place.inode,
            )
            if other.uid != one.uid and is_there:
                raise EnrolmentError(f"{one.place.path} is enrolled as {other.uid}")

    async def _tell(self, server: Server, one: Enrolled) -> None:
        netns = self._spaces[one.uid]
        try:
            await server.add(KnownPod(one.uid, one.info, netns))
            if self._probes is not None:
                await asyncio.to_thread(self._probes.add, one.uid, netns)
            one.problem = ""
        except RefusedError as error:
            one.problem = str(error)
            log.warn(f"{one.uid} is not served yet: {error}")
        except Exception as error:
            one.problem = f"health checks do not pass: {error}"
            log.warn(f"{one.uid}: {one.problem}")
