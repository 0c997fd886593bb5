# SPDX-License-Identifier: Apache-2.0
"""Whom revocation lists turn away, in handshakes and afterwards: spec identity-ops, A.10."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ssl
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tests.support.authority import Authority, Leaf
from tests.support.plane import CLIENT, SERVER, WORKLOAD, forward, through
from tests.support.tls import tls_context
from tests.support.wait import until
from ztunnel_py.dataplane.abc import RecordKind, Role
from ztunnel_py.decide.verdict import Action, HopProtocol, Verdict
from ztunnel_py.errors import Flag, Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.telemetry import exposition, metrics

if TYPE_CHECKING:
    from tests.support.apps import App
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from tests.support.wire import Wire, WireServer
    from ztunnel_py.identity.certificates import WorkloadCertificate

GATEWAY = Identity("cluster.local", "istio-gateways", "east-west")
REVOKED = "invalid peer certificate: certificate revoked"
UNSIGNED = "the revocation list of its issuer is not signed by it"


@pytest.fixture(scope="module")
def root() -> Authority:
    """An authority that also revokes."""
    return Authority()


@pytest.fixture
def serving(server: Plane, root: Authority) -> Plane:
    """A server of that authority."""
    server.certificate = root.issue(SERVER)
    return server


@pytest.fixture
def dialling(client: Plane, root: Authority) -> Plane:
    """A client of that authority."""
    client.certificate = root.issue(CLIENT)
    return client


async def call(plane: Plane, net: Net, certificate: WorkloadCertificate) -> Wire:
    """A client's connection after its side of the handshake."""
    context = tls_context(certificate, is_server=False, trusts_all=True)
    tunnel = await net.raw_tunnel(plane.port(Role.INBOUND), context=context)
    tunnel.greet()
    return tunnel


async def serve(plane: Plane, net: Net, certificate: WorkloadCertificate) -> WireServer:
    """A server that the plane's connections go to."""
    server = await net.server(certificate=certificate, trusts_all=True)
    plane.decide = lambda _: through(server.address)
    return server


def rejections(plane: Plane) -> list[str]:
    """The metric of rejected connections, as it is scraped."""
    text = exposition.render(metrics.traffic(plane.engine))
    return [line for line in text.splitlines() if line.startswith("istio_crl_policy_rejections_")]


def rejected(reporter: str, count: int) -> list[str]:
    """What it should be."""
    return [f'istio_crl_policy_rejections_total{{reporter="{reporter}"}} {count}']


# --- in handshakes


@pytest.mark.spec("ops-49")
async def test_server_that_is_revoked_is_not_believed_and_counted(
    dialling: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(SERVER)
    await serve(dialling, net, certificate)
    await dialling.engine.revocations_set((root.crl(certificate),))

    user = await net.user(dialling)

    assert await user.read_all() == b""
    record = await dialling.closed()
    assert (record.reason, record.detail) == (Reason.IO, REVOKED)
    assert rejections(dialling) == rejected("source", 1)


async def test_client_that_is_revoked_is_not_let_in_and_counted(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(certificate),))

    tunnel = await call(serving, net, certificate)

    await tunnel.closed()
    record = await serving.denied()
    assert (record.reason, record.detail) == (Reason.TLS_HANDSHAKE, REVOKED)
    assert rejections(serving) == rejected("destination", 1)
    assert not serving.flows


@pytest.mark.spec("ops-50")
async def test_clients_below_a_revoked_intermediate_are_not_let_in(
    serving: Plane, net: Net, root: Authority
) -> None:
    bad = root.intermediate("bad")
    await serving.engine.revocations_set((root.crl(bad),))

    refused = await call(serving, net, bad.intermediate("below").issue(CLIENT))
    let_in = await call(serving, net, root.intermediate("good").issue(CLIENT))

    await refused.closed()
    assert (await serving.denied()).detail == REVOKED
    await let_in.fence()


@pytest.mark.spec("ops-50")
async def test_servers_below_a_revoked_intermediate_are_not_believed(
    dialling: Plane, net: Net, root: Authority
) -> None:
    bad = root.intermediate("bad")
    await serve(dialling, net, bad.issue(SERVER))
    await dialling.engine.revocations_set((root.crl(bad),))

    user = await net.user(dialling)

    assert await user.read_all() == b""
    assert (await dialling.closed()).detail == REVOKED


async def test_intermediate_revokes_its_own_leaves(
    serving: Plane, net: Net, root: Authority
) -> None:
    between = root.intermediate("between")
    bad, good = between.issue(CLIENT), between.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(), between.crl(bad)))

    refused, let_in = await call(serving, net, bad), await call(serving, net, good)

    await refused.closed()
    await let_in.fence()


@pytest.mark.spec("ops-51")
async def test_list_that_should_have_been_renewed_still_counts(
    serving: Plane, net: Net, root: Authority
) -> None:
    bad, good = root.issue(CLIENT), root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(bad, is_expired=True),))

    refused, let_in = await call(serving, net, bad), await call(serving, net, good)

    await refused.closed()
    assert (await serving.denied()).detail == REVOKED
    await let_in.fence()


@pytest.mark.spec("ops-52")
async def test_certificates_of_an_authority_without_a_list_count(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    stranger = Authority("stranger")
    await serving.engine.revocations_set((stranger.crl(certificate),))

    tunnel = await call(serving, net, certificate)

    await tunnel.fence()


async def test_list_signed_by_a_stranger_turns_everybody_away_whom_it_might_be_about(
    serving: Plane, net: Net, root: Authority
) -> None:
    stranger = Authority("stranger")
    await serving.engine.revocations_set((root.crl(signer=stranger),))

    tunnel = await call(serving, net, root.issue(CLIENT))

    await tunnel.closed()
    record = await serving.denied()
    assert UNSIGNED in record.detail
    assert record.reason is Reason.TLS_HANDSHAKE
    assert rejections(serving) == []


async def test_authorities_of_one_name_have_a_list_each(
    serving: Plane, net: Net, root: Authority
) -> None:
    namesake = Authority()
    bad, good = root.issue(CLIENT), root.issue(CLIENT)
    await serving.engine.revocations_set((namesake.crl(good), root.crl(bad)))

    refused, let_in = await call(serving, net, bad), await call(serving, net, good)

    await refused.closed()
    assert (await serving.denied()).detail == REVOKED
    await let_in.fence()


async def test_long_list_is_searched(serving: Plane, net: Net, root: Authority) -> None:
    bad, good = root.issue(CLIENT), root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(bad, more=range(1, 100_000)),))

    refused, let_in = await call(serving, net, bad), await call(serving, net, good)

    await refused.closed()
    assert (await serving.denied()).detail == REVOKED
    await let_in.fence()


# --- changes of the lists


async def test_lists_take_the_place_of_all_others(
    serving: Plane, net: Net, root: Authority
) -> None:
    first, second = root.issue(CLIENT), root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(first),))
    await serving.engine.revocations_set((root.crl(second),))

    let_in, refused = await call(serving, net, first), await call(serving, net, second)

    await refused.closed()
    await let_in.fence()


async def test_lists_of_which_one_is_broken_change_nothing(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(certificate),))

    with pytest.raises(ValueError, match=r"\w"):
        await serving.engine.revocations_set((root.crl(), b"garbage"))

    refused = await call(serving, net, certificate)
    await refused.closed()
    assert (await serving.denied()).detail == REVOKED


async def test_certificate_that_is_no_longer_listed_counts_again(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(certificate),))
    await serving.engine.revocations_set(())

    tunnel = await call(serving, net, certificate)

    await tunnel.fence()


# --- what lives


@pytest.fixture
async def app(net: Net) -> App:
    """What the server serves."""
    return await net.app()


async def carrying(serving: Plane, net: Net, app: App, certificate: WorkloadCertificate) -> Wire:
    """A client's tunnel with one connection to the application."""
    serving.decide = lambda _: forward(app.address, reporter="destination")
    tunnel = await call(serving, net, certificate)
    stream = tunnel.connect(authority=str(app.address))
    assert await tunnel.status(stream) == 200
    tunnel.data(stream, b"hello")
    assert await (await app.accept()).read(5) == b"hello"
    return tunnel


async def test_tunnel_of_a_client_that_becomes_revoked_ends_with_all_that_it_carries(
    serving: Plane, net: Net, root: Authority, app: App
) -> None:
    bad, good = root.issue(CLIENT), root.issue(CLIENT)
    doomed = await carrying(serving, net, app, bad)
    other = await carrying(serving, net, app, good)

    assert await serving.engine.revocations_set((root.crl(bad),)) == 1

    record = await serving.closed()
    assert record.reason is Reason.CERT_REVOKED
    assert record.reason.describe() == "connection closed: peer certificate revoked by CRL"
    assert serving.counts.closed[Flag.CERT_REVOKED] == 1
    assert rejections(serving) == rejected("destination", 1)
    await doomed.closed()
    assert (await doomed.goaway()).error_code == 0
    assert not doomed.ended, "what it carried did not end in order"
    await other.fence()
    assert len(serving.of(RecordKind.CLOSED)) == 1
    (view,) = serving.engine.connections()
    assert view.src == other.local


async def test_tunnel_to_a_server_that_becomes_revoked_ends_with_all_that_it_carries(
    dialling: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(SERVER)
    server = await serve(dialling, net, certificate)
    users = [await net.user(dialling) for _ in range(3)]
    tunnel = await server.tunnel()
    await tunnel.asked(3)
    await until(lambda: len(dialling.of(RecordKind.OPENED)) == 3, "three connections")

    assert await dialling.engine.revocations_set((root.crl(certificate),)) == 1

    await dialling.closed(3)
    assert {one.reason for one in dialling.of(RecordKind.CLOSED)} == {Reason.CERT_REVOKED}
    assert dialling.counts.closed[Flag.CERT_REVOKED] == 3
    assert rejections(dialling) == rejected("source", 1)
    await tunnel.closed()
    for user in users:
        await user.read_all()


async def test_revoked_server_is_dialled_again_and_not_believed(
    dialling: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(SERVER)
    server = await serve(dialling, net, certificate)
    await net.user(dialling)
    await (await server.tunnel()).asked()
    await dialling.engine.revocations_set((root.crl(certificate),))
    await dialling.closed()

    await net.user(dialling)

    assert (await dialling.closed(2)).detail == REVOKED
    assert rejections(dialling) == rejected("source", 2)


def doubly(gateway: Plane) -> Verdict:
    """A verdict through the gateway to the server."""
    (hop,) = through(gateway.port(Role.INBOUND), "web.shop:80", sans=(GATEWAY,)).hops
    inner = {"inner_authority": "web.shop.svc:8080", "inner_sans": (SERVER,)}
    hop = dataclasses.replace(hop, protocol=HopProtocol.DOUBLE_HBONE, **inner)  # type: ignore[arg-type]
    return Verdict(Action.FORWARD, hops=(hop,))


@pytest.mark.parametrize("who", ["gateway", "server"])
async def test_double_hbone_ends_with_either_of_its_tunnels(
    planes: Planes, dialling: Plane, serving: Plane, net: Net, root: Authority, app: App, who: str
) -> None:
    gateway = await planes(GATEWAY)
    gateway.certificate = root.issue(GATEWAY)
    gateway.decide = lambda _: forward(serving.port(Role.INBOUND), reporter="destination")
    serving.decide = lambda _: forward(app.address, reporter="destination")
    dialling.decide = lambda _: doubly(gateway)
    user = await net.user(dialling)
    served = await app.accept()
    user.send(b"hello")
    assert await served.read(5) == b"hello"
    bad = {"gateway": gateway, "server": serving}[who].certificate
    assert bad is not None

    assert await dialling.engine.revocations_set((root.crl(bad),)) == 1

    record = await dialling.closed()
    assert (record.reason, record.protocol) == (Reason.CERT_REVOKED, "DOUBLEHBONE")
    await user.read_all()


@pytest.mark.spec("ops-57")
async def test_connection_whose_certificate_has_expired_since_outlives_a_change_of_the_lists(
    serving: Plane, net: Net, root: Authority, app: App
) -> None:
    ends_in = datetime.timedelta(seconds=2)
    leaf = Leaf([x509.UniformResourceIdentifier(str(CLIENT))], ends_in=ends_in)
    certificate = root.issue(CLIENT, leaf)
    tunnel = await carrying(serving, net, app, certificate)
    await until(lambda: time.time() > certificate.not_after + 1, "the certificate to expire")

    assert await serving.engine.revocations_set((root.crl(more=[1]),)) == 0

    await tunnel.fence()
    assert len(serving.engine.connections()) == 1


async def test_change_among_200_tunnels_ends_those_that_are_revoked_and_no_others(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificates = [root.issue(CLIENT) for _ in range(10)]
    tunnels = [await call(serving, net, certificates[i % 10]) for i in range(200)]
    await until(lambda: len(serving.engine.tunnels()) == 200, "200 tunnels")

    assert await serving.engine.revocations_set((root.crl(*certificates[:2]),)) == 40

    for i, tunnel in enumerate(tunnels):
        if i % 10 < 2:
            await tunnel.closed()
        else:
            await tunnel.fence()
    assert len(serving.engine.tunnels()) == 160
    assert rejections(serving) == rejected("destination", 40)


async def test_change_during_handshakes_leaves_no_revoked_tunnel(
    serving: Plane, net: Net, root: Authority
) -> None:
    bad, good = root.issue(CLIENT), root.issue(CLIENT)
    revocations = [root.crl(bad, more=[serial]) for serial in range(1, 21)]
    tunnels: list[tuple[Wire, bool]] = []

    for der in revocations:
        tunnels.append((await call(serving, net, good), True))
        tunnels.append((await call(serving, net, bad), False))
        await serving.engine.revocations_set((der,))
        assert not any(one.streams for one in serving.engine.tunnels())

    for tunnel, is_let_in in tunnels:
        if is_let_in:
            await tunnel.fence()
        else:
            await tunnel.closed()
    assert len(serving.engine.tunnels()) == len(revocations)
    assert rejections(serving) == rejected("destination", len(revocations))


async def test_change_between_a_clients_certificate_and_the_end_of_its_handshake_counts(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = tls_context(certificate, is_server=False, trusts_all=True).wrap_bio(heard, said)
    user = await net.dial(serving.port(Role.INBOUND))
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    user.send(said.read())
    while not said.pending:
        heard.write(await user.read_some())
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
    last = said.read()
    user.send(last[:-1])
    await until(lambda: user.unread_by_engine == 0, "the certificate to be read")

    await serving.engine.revocations_set((root.crl(certificate),))
    user.send(last[-1:])

    await serving.denied()
    assert rejections(serving) == rejected("destination", 1)
    assert not serving.engine.tunnels()
    await user.ending()


async def test_renewal_and_lists_do_not_undo_each_other(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(certificate),))

    serving.engine.identity_set(WORKLOAD, root.issue(SERVER))

    refused = await call(serving, net, certificate)
    await refused.closed()
    assert (await serving.denied()).detail == REVOKED
