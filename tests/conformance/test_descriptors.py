# SPDX-License-Identifier: Apache-2.0
"""Out of file descriptors: accepting backs off, what runs goes on, and then all is well again."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
from typing import TYPE_CHECKING

from tests.support.plane import CLIENT, WORKLOAD, forward, through
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import Role
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.net import Mesh, Net
    from tests.support.plane import Plane


@contextlib.contextmanager
def exhausted() -> Iterator[None]:
    """Leaves this process without a free descriptor."""
    gc.collect()  # else what an earlier test left may become free in between
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken[0] + 1, 64), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_accept_backs_off_and_running_traffic_goes_on(mesh: Mesh) -> None:
    user, app = await mesh.connect()
    host, port = mesh.client.port(Role.OUTBOUND)
    with socket.socket() as late:
        late.setblocking(False)
        with exhausted():
            late.connect_ex((str(host), port))
            await until(lambda: mesh.client.event("accept_exhausted") > 0, "an exhausted accept")
            await settle()
            assert mesh.client.event("accept_exhausted") == 1, "spinning"
            user.send(b"ping")
            assert await app.read(4) == b"ping"
            mesh.client.advance(0.05)
            await until(lambda: mesh.client.event("accept_exhausted") == 2, "another try")

        mesh.client.advance(0.05)
        served = await mesh.app.accept()
        late.send(b"late")
        assert await served.read(4) == b"late"


async def test_dial_without_descriptors_ends_its_connection_only(client: Plane, net: Net) -> None:
    app = await net.app()
    running = forward(app.address)
    client.decide = lambda _: None
    first, second = await net.user(client), await net.user(client)
    await client.asked(2)
    client.engine.reply(client.flows[0].id, running)
    served = await app.accept()

    with exhausted():
        client.engine.reply(client.flows[1].id, running)
        record = await client.closed()

    assert (record.reason, record.src) == (Reason.IO, second.local)
    assert await second.read_all() == b""
    first.send(b"on")
    assert await served.read(2) == b"on"


async def test_tunnel_without_descriptors_is_an_error_of_its_connection(
    client: Plane, net: Net
) -> None:
    server = await net.server()
    client.engine.identity_set(WORKLOAD, net.certify(CLIENT))
    user = await net.user(client)
    await client.asked()

    with exhausted():
        client.answer(through(server.address))
        record = await client.closed()
    assert record.reason is Reason.IO
    assert await user.read_all() == b""

    client.decide = lambda _: through(server.address)
    await net.user(client)
    await (await server.tunnel()).asked()
