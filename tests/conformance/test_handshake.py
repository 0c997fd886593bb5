# SPDX-License-Identifier: Apache-2.0
"""TLS on 15008 and toward it: who is let in, who is believed, and how long it may take."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import RST
from tests.support.plane import CLIENT, SERVER, WORKLOAD, forward, through
from tests.support.tls import tls_context
from tests.support.wait import settle, until
from ztunnel_py.dataplane.abc import QuestionKind, RecordKind, Role
from ztunnel_py.decide.verdict import Verdict
from ztunnel_py.errors import Flag, Reason
from ztunnel_py.identity import fake
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from ztunnel_py.identity.certificates import WorkloadCertificate

FOREIGN = Identity("elsewhere.local", "ns", "client")
OTHER = Identity("cluster.local", "ns", "other")
CLIENT_HELLO_START = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


# --- accepted


@pytest.mark.spec("dataplane-65")
@pytest.mark.parametrize("identity", [FOREIGN, None], ids=["other trust domain", "none"])
async def test_client_that_proves_no_identity_of_ours_is_denied(
    server: Plane, net: Net, identity: Identity | None
) -> None:
    certificate = None if identity is None else net.certify(identity)
    tunnel = await net.raw_tunnel(server.port(Role.INBOUND), certificate)
    tunnel.greet()
    tunnel.connect()

    record = await server.denied()

    assert record.reason.describe(record.detail).startswith("tls handshake error: ")
    assert record.src == tunnel.local
    await tunnel.closed()
    assert not server.flows
    assert not server.engine.slots()


@pytest.fixture
def other_root(tmp_path: Path) -> fake.SigningRoot:
    """An authority that nobody knows."""
    tmp_path.chmod(0o700)
    return fake.shared_root(tmp_path)


@pytest.fixture
async def stranger(other_root: fake.SigningRoot) -> WorkloadCertificate:
    """The client's identity, signed by somebody else."""
    return await fake.FakeCa(other_root, ttl_s=3600).issue(CLIENT)


async def test_client_of_an_unknown_authority_is_denied(
    server: Plane, net: Net, stranger: WorkloadCertificate
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await net.raw_tunnel(server.port(Role.INBOUND), stranger)

    assert (await server.denied()).reason is Reason.TLS_HANDSHAKE


@pytest.mark.parametrize(("tls12", "is_let_in"), [(False, False), (True, True)])
async def test_tls_12_is_spoken_only_if_enabled(
    planes: Planes, net: Net, tls12: bool, is_let_in: bool
) -> None:
    plane = await planes(SERVER, tls12=tls12)
    context = tls_context(net.certify(CLIENT), is_server=False)
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    if is_let_in:
        tunnel = await net.raw_tunnel(plane.port(Role.INBOUND), context=context)
        tunnel.greet()
        await tunnel.fence()
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await net.raw_tunnel(plane.port(Role.INBOUND), context=context)
        assert (await plane.denied()).reason is Reason.TLS_HANDSHAKE


@pytest.mark.parametrize("alpn", [(), ("h2", "x"), ("x", "h2")])
async def test_client_may_offer_h2_or_nothing(
    server: Plane, net: Net, alpn: tuple[str, ...]
) -> None:
    context = tls_context(net.certify(CLIENT), is_server=False, alpn=alpn)

    tunnel = await net.raw_tunnel(server.port(Role.INBOUND), context=context)
    tunnel.greet()

    await tunnel.fence()


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\x00\x05hello", b"\xff" * 70_000],
    ids=["http", "zeros", "short record", "long"],
)
async def test_garbage_instead_of_tls_is_denied(server: Plane, net: Net, garbage: bytes) -> None:
    stranger = await net.dial(server.port(Role.INBOUND))

    stranger.send(garbage)

    record = await server.denied()
    assert record.reason is Reason.TLS_HANDSHAKE
    assert record.src == stranger.local
    await stranger.ending()


@pytest.mark.parametrize("said", [b"", CLIENT_HELLO_START], ids=["nothing", "half a hello"])
async def test_client_that_hangs_up_in_the_handshake_is_denied(
    server: Plane, net: Net, said: bytes
) -> None:
    stranger = await net.dial(server.port(Role.INBOUND))
    stranger.send(said)
    await until(lambda: server.sockets_open("destination") == 1, "the accept")

    stranger.end()

    assert (await server.denied()).reason is Reason.TLS_HANDSHAKE
    await stranger.ending()
    await until(lambda: server.sockets_open("destination") == 0, "the gauge")


@pytest.mark.parametrize("said", [b"", CLIENT_HELLO_START], ids=["nothing", "half a hello"])
async def test_client_that_never_finishes_the_handshake_is_let_go_at_the_deadline(
    server: Plane, net: Net, said: bytes
) -> None:
    stranger = await net.dial(server.port(Role.INBOUND))
    stranger.send(said)
    await until(lambda: server.sockets_open("destination") == 1, "the accept")
    await settle()

    server.advance(9.9)
    await settle()
    assert server.sockets_open("destination") == 1
    server.advance(0.1)

    record = await server.denied()
    assert record.reason.describe(record.detail) == (
        "tls handshake error: not complete within 10 s"
    )
    await stranger.ending()
    await until(lambda: server.sockets_open("destination") == 0, "the gauge")


async def test_client_that_never_says_its_preface_is_let_go(server: Plane, net: Net) -> None:
    tunnel = await net.raw_tunnel(server.port(Role.INBOUND), net.certify(CLIENT))
    await until(lambda: bool(server.engine.tunnels()), "the tunnel")

    server.advance(10)
    await settle()
    server.advance(20)

    await tunnel.closed()


async def test_unfinished_handshakes_are_bounded_and_the_oldest_makes_room(
    planes: Planes, net: Net
) -> None:
    plane = await planes(SERVER, handshakes_at_once=3)
    plane.decide = lambda _: Verdict.deny(Reason.UNKNOWN_HOST)
    idlers = [await net.dial(plane.port(Role.INBOUND)) for _ in range(3)]
    await until(lambda: plane.sockets_open("destination") == 3, "the accepts")

    await net.tunnel(plane)
    await idlers[0].ending()

    assert (await plane.denied()).reason is Reason.TOO_BUSY
    assert plane.event("handshakes_refused") == 1
    assert len(plane.of(RecordKind.DENIED)) == 1


async def test_address_with_most_handshakes_makes_room(planes: Planes, net: Net) -> None:
    plane = await planes(SERVER, handshakes_at_once=3)
    quiet = await net.dial(plane.port(Role.INBOUND), "127.0.0.2")
    await until(lambda: plane.sockets_open("destination") == 1, "the accept")
    for _ in range(5):
        await net.dial(plane.port(Role.INBOUND), "127.0.0.3")

    await until(lambda: plane.event("handshakes_refused") == 3, "refusals")

    await plane.denied(3)
    assert {str(record.src.ip) for record in plane.records} == {"127.0.0.3"}
    quiet.end()
    assert (await plane.denied(4)).src == quiet.local


async def test_established_tunnels_do_not_count_as_handshakes(planes: Planes, net: Net) -> None:
    plane = await planes(SERVER, handshakes_at_once=1)

    for _ in range(3):
        await net.tunnel(plane)

    assert len(plane.engine.tunnels()) == 3


# --- the workload's own certificate


async def test_handshake_without_a_certificate_is_closed_without_an_alert(
    planes: Planes, net: Net
) -> None:
    plane = await planes(None)
    stranger = await net.dial(plane.port(Role.INBOUND))
    stranger.send(CLIENT_HELLO_START)

    record = await plane.denied()

    assert record.reason.describe(record.detail) == "signing error: no certificate"
    assert await stranger.read_some_or_reset() == b""


async def test_tunnel_without_a_certificate_is_an_identity_error(planes: Planes, net: Net) -> None:
    plane = await planes(None)
    server = await net.server()
    plane.decide = lambda _: through(server.address)

    user = await net.user(plane)

    assert await user.read_all() == b""
    record = await plane.closed()
    assert record.reason.describe(record.detail) == "identity error: no certificate"
    assert plane.counts.closed == {Flag.IDENTITY_ERROR: 1}
    assert not server.tunnels


async def test_certificate_is_asked_for_once_and_then_used(server: Plane, net: Net) -> None:
    for _ in range(2):
        await net.tunnel(server)

    kinds = [question.kind for question in server.questions]
    assert kinds == [QuestionKind.IDENTITY]


async def test_dropped_certificate_is_asked_for_again(server: Plane, net: Net) -> None:
    await net.tunnel(server)

    server.engine.identity_drop(WORKLOAD)
    await net.tunnel(server)

    assert len(server.questions) == 2


@pytest.mark.spec("ops-45")
async def test_new_certificate_serves_new_tunnels_and_leaves_the_running_alone(
    server: Plane, net: Net
) -> None:
    before = await net.tunnel(server)

    server.engine.identity_set(WORKLOAD, net.certify(OTHER))
    after = await net.tunnel(server)

    assert (before.names, after.names) == ([str(SERVER)], [str(OTHER)])
    await before.fence()


async def test_certificate_that_cannot_be_used_is_refused(client: Plane, net: Net) -> None:
    ours, other = net.certify(CLIENT), net.certify(OTHER)
    mixed = type(ours)(
        CLIENT, ours.chain_pem, other.key_pem, ours.roots_pem, ours.not_before, ours.not_after
    )

    with pytest.raises((ValueError, OSError)):
        client.engine.identity_set(WORKLOAD, mixed)


# --- dialled


@pytest.mark.spec("dataplane-51")
async def test_server_with_an_unexpected_identity_is_not_believed(client: Plane, net: Net) -> None:
    server = await net.server(OTHER)
    client.decide = lambda _: through(server.address, sans=(SERVER,))
    user = await net.user(client)
    user.send(b"too early")

    record = await client.closed()

    assert await user.ending() == RST
    assert record.reason is Reason.IO
    assert str(OTHER) in record.detail
    assert client.counts.closed == {Flag.CONNECT: 1}
    assert server.accepted == 1
    assert not any(tunnel.headers for tunnel in server.tunnels)


async def test_any_expected_identity_is_enough(client: Plane, net: Net) -> None:
    server = await net.server(SERVER)
    client.decide = lambda _: through(server.address, sans=(OTHER, SERVER))

    await net.user(client)

    await (await server.tunnel()).asked()


async def test_hop_that_expects_nobody_is_never_reached(client: Plane, net: Net) -> None:
    server = await net.server(SERVER)
    client.decide = lambda _: through(server.address, sans=())

    user = await net.user(client)

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.IO


async def test_server_that_never_finishes_the_handshake_is_given_up_at_the_deadline(
    client: Plane, net: Net
) -> None:
    app = await net.app()
    client.decide = lambda _: through(app.address)
    user = await net.user(client)
    silent = await app.accept()
    await silent.read_some()
    await settle(2)

    client.advance(10)

    assert await user.read_all() == b""
    record = await client.closed()
    assert record.reason.describe(record.detail) == "io error: tls handshake timed out"
    await silent.ending()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(200)])
async def test_garbage_from_a_server_is_an_io_error(client: Plane, net: Net, answer: bytes) -> None:
    app = await net.app()
    client.decide = lambda _: through(app.address)
    user = await net.user(client)

    (await app.accept()).send(answer)

    assert await user.read_all() == b""
    assert (await client.closed()).reason is Reason.IO


async def test_plain_hop_needs_no_certificate(planes: Planes, net: Net) -> None:
    plane = await planes(None)
    app = await net.app()
    plane.decide = lambda _: forward(app.address)

    await net.user(plane)

    await app.accept()
