# SPDX-License-Identifier: Apache-2.0
"""How commands reach the agent: one JSON object over a Unix socket that only its user opens.

    {"do": "enroll", "name": .., "namespace": .., "serviceAccount": .., "netns": path,
     "options": {}}
    {"do": "unenroll", "uid": "namespace/name"}
    {"do": "enrolled"}

The answer is an object, with `error` if it could not be done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from ztunnel_py.agent.agent import EnrolmentError
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.agent.agent import Agent
    from ztunnel_py.agent.enrolled import Enrolled
    from ztunnel_py.agent.server import Server

LONGEST = 64 * 1024
PATIENCE_S = 60.0
"""Of a command: rules of two families may have to be written, and a proxy to answer."""

Json = dict[str, Any]

log = logger("ztunnel::agent")


class AbsentError(Exception):
    """There is no agent; the text says where it was looked for."""


class Control:
    """Takes commands at `path`."""

    def __init__(self, path: Path, agent: Agent, server: Server) -> None:
        self._path = path
        self._agent = agent
        self._server = server
        self._listening: asyncio.Server | None = None

    async def open(self) -> None:
        """Listens.

        Raises:
            OSError: it cannot be listened at.
        """
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._listening = await asyncio.start_unix_server(self._serve, self._path, limit=LONGEST)
        self._path.chmod(0o600)

    def close(self) -> None:
        """Takes no more."""
        if self._listening is not None:
            self._listening.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            answer = await self._answer(line)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError) as error:
            log.warn(f"a command was not understood: {error}")
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Json:
        try:
            order = json.loads(line)
            match order["do"]:
                case "enroll":
                    names = (order["name"], order["namespace"], order["serviceAccount"])
                    info = WorkloadInfo(*map(str, names))
                    path, options = str(order["netns"]), dict(order["options"])
                    return _shown(await self._agent.enroll(self._server, info, path, options))
                case "unenroll":
                    return _shown(await self._agent.unenroll(self._server, str(order["uid"])))
                case "enrolled":
                    pods = [_shown(one) for one in self._agent.enrolled()]
                    return {"pods": pods, "proxies": self._server.proxies}
                case other:
                    return {"error": f"unknown command {other!r}"}
        except EnrolmentError as error:
            return {"error": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": f"malformed command: {error!r}"}
        except Exception as error:  # whoever asked must hear of it, and the agent goes on
            log.error(f"a command failed: {error!r}")
            return {"error": f"the agent failed: {error}"}


def _shown(one: Enrolled) -> Json:
    return {
        "uid": one.uid,
        "name": one.name,
        "namespace": one.namespace,
        "serviceAccount": one.service_account,
        "netns": one.place.path,
        "problem": one.problem,
    }


def command(path: Path, order: Json) -> Json:
    """Gives one order to the agent at `path`, and waits for its answer.

    Raises:
        AbsentError: nobody listens there, or nobody answers.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(order).encode() + b"\n")
            with sock.makefile("rb") as answer:
                line = answer.readline(16 * LONGEST)
        except OSError as error:
            raise AbsentError(
                f"no agent at {path}: {error}; `ztunnel-py agent` runs one"
            ) from error
    try:
        found: Json = json.loads(line)
    except ValueError as error:
        raise AbsentError(f"the agent at {path} hung up") from error
    return found
