# SPDX-License-Identifier: Apache-2.0
"""The agent as a program: from its sockets to its end."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.agent.agent import Agent
from ztunnel_py.agent.control import Control
from ztunnel_py.agent.enrolled import StateFile
from ztunnel_py.agent.server import Server
from ztunnel_py.clock import LoopClock
from ztunnel_py.errors import StartError
from ztunnel_py.tasks import Tasks
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.agent.agent import Probes, Redirection

log = logger("ztunnel::agent")


class Paths(NamedTuple):
    """Where the agent is found, and what it remembers."""

    zds: Path
    control: Path
    state: Path


async def run(paths: Paths, redirection: Redirection, probes: Probes | None) -> None:
    """Runs until SIGTERM or SIGINT.

    Raises:
        StartError: it cannot.
    """
    clock, tasks = LoopClock(), Tasks()
    agent = Agent(redirection, probes, StateFile(paths.state), clock)
    await agent.restore()
    server = Server(paths.zds, agent.pods, agent.refused)
    control = Control(paths.control, agent, server)
    try:
        for path in (paths.zds, paths.control):
            path.parent.mkdir(parents=True, exist_ok=True)
        server.open()
        await control.open()
    except OSError as error:
        raise StartError(f"the agent cannot listen: {error}") from error
    tasks.spawn(agent.keep_trying(server))
    log.info(f"agent ready: proxies at {paths.zds}, commands at {paths.control}")
    await _end()
    await control.close()
    await tasks.stop()
    await server.close()
    await agent.close()
    if pods := agent.enrolled():
        names = ", ".join(one.uid for one in pods)
        log.warn(f"{len(pods)} pods stay redirected to their proxy: {names}; `unenroll` ends that")


async def _end() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
