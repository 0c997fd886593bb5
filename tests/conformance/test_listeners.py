# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: where they are bound, what they accept, what an address means."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.plane import (
    CLIENT,
    LOOPBACK,
    SERVER,
    WORKLOAD,
    address,
    captured_key,
    forward,
    inbound_key,
)
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import ListenAddress, Role, WorkloadSpec
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes

DENIED = Verdict.deny(Reason.NO_ROUTE)
needs_ipv6 = pytest.mark.skipif(
    not os.path.exists("/proc/net/if_inet6"), reason="the kernel has no IPv6"
)


@needs_ipv6
@pytest.mark.spec("dataplane-5")
@pytest.mark.parametrize("role", [Role.OUTBOUND, Role.INBOUND, Role.PASSTHROUGH])
@pytest.mark.parametrize("target", ["127.0.0.1", "::1"])
async def test_listener_on_the_ipv6_wildcard_takes_both_families(
    planes: Planes, net: Net, role: Role, target: str
) -> None:
    plane = await planes(CLIENT, host="::")

    await net.dial(address(plane.port(role).port, target))

    await until(lambda: plane.sockets_open("source") + plane.sockets_open("destination") == 1, "it")


@needs_ipv6
@pytest.mark.spec("state-54")
@pytest.mark.parametrize("role", [Role.OUTBOUND, Role.INBOUND, Role.PASSTHROUGH])
async def test_ipv4_client_of_an_ipv6_listener_is_decided_on_as_ipv4(
    planes: Planes, net: Net, role: Role
) -> None:
    plane = await planes(SERVER if role is Role.INBOUND else CLIENT, host="::")
    target = address(plane.port(role).port)

    if role is Role.INBOUND:
        (await net.tunnel(plane, at=target)).connect()
        key = inbound_key(await plane.asked())
        assert (str(key.src), str(key.local)) == (LOOPBACK, LOOPBACK)
    else:
        await net.dial(target)
        captured = captured_key(await plane.asked())
        assert (str(captured.src), str(captured.dst.ip)) == (LOOPBACK, LOOPBACK)


@needs_ipv6
@pytest.mark.spec("dataplane-5")
async def test_listener_on_the_ipv4_wildcard_takes_no_ipv6(planes: Planes, net: Net) -> None:
    plane = await planes(CLIENT, host="0.0.0.0")
    port = plane.port(Role.OUTBOUND).port

    await net.dial(address(port))
    with pytest.raises(ConnectionRefusedError):
        await net.dial(address(port, "::1"))


async def test_occupied_port_is_an_error_that_leaves_no_listener_behind(client: Plane) -> None:
    with socket.create_server((LOOPBACK, 0)) as occupant:
        free, taken = 0, occupant.getsockname()[1]
        with socket.create_server((LOOPBACK, 0)) as probe:
            free = probe.getsockname()[1]
        listeners = (
            ListenAddress(Role.INBOUND, LOOPBACK, free),
            ListenAddress(Role.OUTBOUND, LOOPBACK, taken),
        )

        with pytest.raises(OSError) as caught:
            client.engine.workload_add(WorkloadSpec("b", listeners))

    assert caught.value.errno == errno.EADDRINUSE
    assert str(taken) in str(caught.value)
    assert client.engine.debug_counts()["workloads"] == 1
    socket.create_server((LOOPBACK, free)).close()


@pytest.mark.spec("dataplane-10")
@pytest.mark.parametrize(
    ("orig_src", "outcome"), [("true", "PermissionError"), ("unset", "not transparent")]
)
def test_keeping_client_addresses_needs_privilege_only_if_required(
    engine_name: str, orig_src: str, outcome: str
) -> None:
    command = [sys.executable, "-m", "tests.support.unprivileged", engine_name, orig_src]

    child = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    assert child.stdout.strip() == outcome, child.stderr


async def test_false_never_tries_to_be_transparent(planes: Planes) -> None:
    plane = await planes(CLIENT, orig_src=False)

    assert not any(plane.engine.is_transparent(WORKLOAD, role) for role in Role)


async def test_clients_wait_in_the_queue_until_the_workload_is_served(
    planes: Planes, net: Net
) -> None:
    plane = await planes(CLIENT, serve=False)
    plane.decide = lambda _: DENIED
    user = await net.user(plane)
    await settle()
    assert not plane.flows

    plane.engine.workload_serve(WORKLOAD)

    await plane.asked()
    assert await user.ending() == "FIN"


@needs_ipv6
@pytest.mark.spec("dataplane-13")
@pytest.mark.parametrize("role", [Role.OUTBOUND, Role.PASSTHROUGH])
async def test_ipv4_client_of_a_dual_stack_listener_is_plain_ipv4(
    planes: Planes, net: Net, role: Role
) -> None:
    plane = await planes(CLIENT, host="::")
    plane.decide = lambda _: DENIED

    user = await net.dial(address(plane.port(role).port))
    key = captured_key(await plane.asked())
    record = await plane.denied()

    assert (key.src, key.dst) == (user.local.ip, user.remote)
    assert (record.src, record.dst) == (user.local, user.remote)
    assert record.src.ip.version == record.dst.ip.version == 4


@needs_ipv6
@pytest.mark.spec("dataplane-13")
async def test_ipv4_tunnel_to_a_dual_stack_listener_is_plain_ipv4(planes: Planes, net: Net) -> None:
    plane = await planes(SERVER, host="::")
    plane.decide = lambda _: DENIED
    tunnel = await net.tunnel(plane, at=address(plane.port(Role.INBOUND).port))

    tunnel.connect()
    key = inbound_key(await plane.asked())
    record = await plane.denied()

    assert (key.src, key.local) == (tunnel.local.ip, tunnel.remote.ip)
    assert (record.src, record.dst) == (tunnel.local, tunnel.remote)


@pytest.mark.spec("dataplane-14")
@pytest.mark.parametrize("role", [Role.OUTBOUND, Role.PASSTHROUGH])
async def test_destination_without_redirection_is_the_local_address(
    client: Plane, net: Net, role: Role
) -> None:
    client.decide = lambda _: DENIED

    await net.dial(client.port(role))

    assert captured_key(await client.asked()).dst == client.port(role)


async def test_removed_workload_listens_no_more_and_the_others_do(client: Plane, net: Net) -> None:
    client.add("b")
    app = await net.app()
    client.decide = lambda _: forward(app.address)

    client.engine.workload_remove("b")

    with pytest.raises(ConnectionRefusedError):
        await net.dial(client.port(Role.OUTBOUND, "b"))
    await net.user(client)
    await app.accept()


async def test_stepping_aside_alone_changes_nothing(client: Plane, net: Net) -> None:
    app = await net.app()
    client.decide = lambda _: forward(app.address, reporter="source")

    client.engine.step_aside()

    user = await net.user(client)
    served = await app.accept()
    user.end()
    served.end()
    await client.closed()
