# SPDX-License-Identifier: Apache-2.0
"""How commands reach the agent: HTTP over a Unix socket that only its user opens.

    POST /cmdadd     {"PodName": .., "PodNamespace": .., "Netns": path}: a pod has come, as CNI
                     plugins say it; also "ServiceAccount" ("default") and "Options" ({})
    POST /unenroll   {"uid": "namespace/name"}
    GET  /enrolled   all pods

200 answers with JSON, 400 that the request is malformed, 500 that it could not be done, both with
the reason as text. Source: spec redirection, section 9.1; istio cni/pkg/nodeagent (cmdadd).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ztunnel_py.agent.agent import EnrolmentError
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from ztunnel_py.agent.agent import Agent
    from ztunnel_py.agent.enrolled import Enrolled
    from ztunnel_py.agent.server import Server

LONGEST = 64 * 1024
PATIENCE_S = 60.0
"""Of a command: rules of two families may have to be written, and a proxy to answer."""
_DRAIN_S = 2.0

Json = dict[str, Any]

log = logger("ztunnel::agent")


class AbsentError(Exception):
    """There is no agent; the text says where it was looked for."""


class RefusedError(Exception):
    """The agent could not do it; the text is its reason."""


class Control:
    """Takes commands at `path`."""

    def __init__(self, path: Path, agent: Agent, server: Server) -> None:
        self._path = path
        self._agent = agent
        self._server = server
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        """Listens.

        Raises:
            OSError: it cannot be listened at.
        """
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        app = web.Application(client_max_size=LONGEST)
        app.router.add_post("/cmdadd", self._answering(self._add))
        app.router.add_post("/unenroll", self._answering(self._remove))
        app.router.add_get("/enrolled", self._answering(self._list))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_DRAIN_S)
        await self._runner.setup()
        await web.UnixSite(self._runner, self._path).start()
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Takes no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._path.unlink(missing_ok=True)

    async def _add(self, order: Json) -> Json:
        account = order.get("ServiceAccount", "default")
        info = WorkloadInfo(_text(order["PodName"]), _text(order["PodNamespace"]), _text(account))
        path, options = _text(order["Netns"]), dict(order.get("Options") or {})
        return _shown(await self._agent.enroll(self._server, info, path, options))

    async def _remove(self, order: Json) -> Json:
        return _shown(await self._agent.unenroll(self._server, _text(order["uid"])))

    async def _list(self, _: Json) -> Json:
        pods = [_shown(one) for one in self._agent.enrolled()]
        return {"pods": pods, "proxies": self._server.proxies}

    def _answering(
        self, do: Callable[[Json], Awaitable[Json]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            try:
                order = json.loads(await request.read()) if request.can_read_body else {}
                return web.json_response(await do(order))
            except EnrolmentError as error:
                return web.Response(status=500, text=str(error))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                return web.Response(status=400, text=f"malformed request: {error!r}")
            except web.HTTPException:
                raise
            except Exception as error:  # whoever asked must hear of it, and the agent goes on
                log.error(f"a command failed: {error!r}")
                return web.Response(status=500, text=f"the agent failed: {error}")

        return answer


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text, got {value!r}")
    return value


def _shown(one: Enrolled) -> Json:
    return {
        "uid": one.uid,
        "name": one.name,
        "namespace": one.namespace,
        "serviceAccount": one.service_account,
        "netns": one.place.path,
        "problem": one.problem,
    }


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def command(path: Path, what: str, order: Json | None = None) -> Json:
    """Asks the agent at `path` for `/what`, and waits for its answer.

    Raises:
        AbsentError: nobody listens there, or nobody answers.
        RefusedError: it could not be done.
    """
    connection = _UnixConnection(path)
    with contextlib.closing(connection):
        try:
            body = None if order is None else json.dumps(order)
            connection.request("GET" if order is None else "POST", f"/{what}", body)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise AbsentError(
                f"no agent at {path}: {error or type(error).__name__}; `ztunnel-py agent` runs one"
            ) from error
    if response.status != http.client.OK:
        raise RefusedError(answer.decode(errors="replace"))
    found: Json = json.loads(answer)
    return found
