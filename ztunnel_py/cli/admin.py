# SPDX-License-Identifier: Apache-2.0
"""Asks the admin port of a running proxy, ours or ztunnel; answers are bounded in time and size."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

from ztunnel_py.cli.failure import Failure
from ztunnel_py.cli.table import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN = "localhost:15000"
"""Where a proxy shows itself, unless told otherwise."""
ANSWER_MAX = 512 * 1024 * 1024
"""Bytes of an answer; a mesh of 70,000 workloads has a dump of 80 MB."""
_SILENCE_S = 30.0
"""How long nothing may come, seconds; a large dump takes a few to make."""
_WHOLE_S = 120.0
"""How long an answer may take altogether, seconds."""
_BLOCK = 1024 * 1024


class AdminError(Failure):
    """The proxy did not answer, or something else did."""


def fetch(admin: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of an answer of the admin server at `host:port`.

    Raises:
        AdminError: there is no HTTP server, it does not answer in time, or answers too much.
    """
    try:
        connection = http.client.HTTPConnection(admin, timeout=_SILENCE_S)
        with contextlib.closing(connection), _deadline(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, _body(response)
    except (OSError, OverflowError, ValueError, http.client.HTTPException) as error:
        said = str(error).strip() or type(error).__name__  # Overflow, Value: of host and port
        raise AdminError(
            f"no proxy answers at {admin}: {printable(said)}; is it running, and in this network "
            "namespace? --admin names another address"
        ) from error


def fetch_json(admin: str, path: str) -> tuple[int, Any]:
    """The same for an answer in JSON; None if it is none.

    Raises:
        AdminError: as `fetch`.
    """
    status, body = fetch(admin, path)
    return status, parsed(body)


def parsed(body: bytes) -> Any:  # noqa: ANN401 - JSON
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def foreign(admin: str, path: str, status: int) -> AdminError:
    """The error for a server that is something else."""
    return AdminError(f"what answers at {admin} is not such a proxy: {path} gave {status}")


@contextlib.contextmanager
def _deadline(connection: http.client.HTTPConnection) -> Iterator[None]:
    """Ends a connection on which something comes all the time, but no end."""
    connection.connect()
    is_over = threading.Event()
    timer = threading.Timer(_WHOLE_S, _shut, (connection.sock, is_over))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_over.is_set():
            raise TimeoutError(f"no whole answer within {_WHOLE_S:g} s")


def _shut(connected: socket.socket, is_over: threading.Event) -> None:
    is_over.set()
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse) -> bytes:
    body = bytearray()
    while block := response.read(_BLOCK):
        body += block
        if len(body) > ANSWER_MAX:
            raise OSError(f"its answer is longer than {ANSWER_MAX} bytes")
    if response.length:  # `read` with a size does not complain
        raise OSError("its answer ended too early")
    return bytes(body)
