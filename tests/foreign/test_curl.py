# SPDX-License-Identifier: Apache-2.0
"""curl through our inbound side as if it were an HTTP/2 proxy: a CONNECT from outside the mesh."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING

from tests.foreign.programs import certificate_files
from tests.support.plane import CLIENT, forward, inbound_key
from ztunnel_py.dataplane.abc import Role
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from tests.foreign.programs import Programs
    from tests.support.apps import Tcp
    from tests.support.net import Net
    from tests.support.plane import Plane

AUTHORITY = "10.0.0.9:80"
BODY = bytes(range(256)) * 32768  # more than a stream window
COULDNT_CONNECT = 7


async def answer(tcp: Tcp) -> None:
    """Answers one request."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += await tcp.read_some()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
    tcp.send(head.encode() + BODY)
    tcp.end()


async def fetch(programs: Programs, server: Plane, net: Net, folder: Path) -> dict[str, int | str]:
    """What came of fetching a page."""
    files = certificate_files(folder, net.certify(CLIENT))
    proxy, url = f"https://{server.port(Role.INBOUND)}", f"http://{AUTHORITY}/"
    said = await programs.run([sys.executable, "-m", "tests.foreign.curl", proxy, *files, url])
    assert said.status == 0, said.text
    found: dict[str, int | str] = json.loads(said.text)
    return found


async def test_curl_fetches_a_page_through_the_tunnel(
    programs: Programs, server: Plane, net: Net, tmp_path: Path
) -> None:
    app = await net.app(answer)
    server.decide = lambda _: forward(app.address)

    found = await fetch(programs, server, net, tmp_path)

    digest = hashlib.sha256(BODY).hexdigest()
    assert found == {"error": 0, "status": 200, "bytes": len(BODY), "digest": digest}
    key = inbound_key(await server.asked())
    assert (key.identity, key.authority) == (CLIENT, AUTHORITY)


async def test_curl_that_is_refused_fetches_nothing(
    programs: Programs, server: Plane, net: Net, tmp_path: Path
) -> None:
    server.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)

    found = await fetch(programs, server, net, tmp_path)

    assert (found["error"], found["bytes"]) == (COULDNT_CONNECT, 0)
