# SPDX-License-Identifier: Apache-2.0
"""TLS that Python's library has no words for: suites, ALPN, anchors, alerts (A.6, A.7)."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tests.support.authority import SERVER_AUTH, Authority, Leaf, forged, uris
from tests.support.client_hello import ClientHello, with_suites
from tests.support.plane import CLIENT, SERVER, WORKLOAD, forward, through
from tests.support.tls import first_record, tls_context
from tests.support.wait import until
from ztunnel_py.dataplane.abc import EngineSettings, Role
from ztunnel_py.dataplane.native import NativeEngine
from ztunnel_py.errors import Reason, StartError
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.telemetry.access_log import AccessLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from tests.support.wire import Wire
    from ztunnel_py.identity.certificates import WorkloadCertificate

ELSEWHERE = Identity("elsewhere.local", "ns", "client")
THIRD = Identity("cluster.local", "ns", "third")
AES_256, AES_128, CHACHA = 0x1301, 0x1302, 0x1303
P_256, P_384, X25519, X25519MLKEM768 = 23, 24, 29, 4588
SERVER_HELLO, ALERT, FATAL_HANDSHAKE_FAILURE = 22, 21, bytes([2, 40])


@pytest.fixture(scope="module")
def root() -> Authority:
    """An authority that does as it is told."""
    return Authority()


@pytest.fixture
def serving(server: Plane, root: Authority) -> Plane:
    """A server of that authority."""
    server.certificate = root.issue(SERVER)
    return server


async def call(
    plane: Plane, net: Net, certificate: WorkloadCertificate, alpn: Sequence[str] = ("h2",)
) -> Wire:
    """A client's connection after its side of the handshake."""
    context = tls_context(certificate, is_server=False, alpn=alpn, trusts_all=True)
    tunnel = await net.raw_tunnel(plane.port(Role.INBOUND), context=context)
    tunnel.greet()
    return tunnel


# --- what is offered


@pytest.mark.spec("ops-34")
@pytest.mark.parametrize(
    ("suite", "answer"), [(AES_256, SERVER_HELLO), (AES_128, SERVER_HELLO), (CHACHA, ALERT)]
)
async def test_client_that_offers_chacha_only_is_refused(
    serving: Plane, net: Net, suite: int, answer: int
) -> None:
    user = await net.dial(serving.port(Role.INBOUND))

    user.send(with_suites(first_record(tls_context(None, is_server=False)), suite))

    record = await user.read(7)
    assert record[0] == answer
    if answer == ALERT:
        assert record[5:] == FATAL_HANDSHAKE_FAILURE
        assert (await serving.denied()).reason is Reason.TLS_HANDSHAKE


@pytest.mark.spec("ops-38")
@pytest.mark.parametrize("alpn", [("http/1.1",), ("h2c", "http/1.1", "h3")])
async def test_client_that_offers_other_protocols_only_gets_no_application_protocol(
    serving: Plane, net: Net, root: Authority, alpn: tuple[str, ...]
) -> None:
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        await call(serving, net, root.issue(CLIENT), alpn)

    assert (await serving.denied()).reason is Reason.TLS_HANDSHAKE


@pytest.mark.spec("ops-38")
async def test_client_that_offers_no_protocols_is_accepted(
    serving: Plane, net: Net, root: Authority
) -> None:
    tunnel = await call(serving, net, root.issue(CLIENT), alpn=())

    await tunnel.fence()


# --- anchors


@pytest.mark.spec("ops-43")
async def test_client_below_an_expired_root_is_accepted(server: Plane, net: Net) -> None:
    expired = Authority(is_expired=True)
    server.certificate = expired.issue(SERVER)

    tunnel = await call(server, net, expired.issue(CLIENT))

    await tunnel.fence()


@pytest.mark.spec("ops-43")
async def test_server_below_an_expired_root_is_believed(client: Plane, net: Net) -> None:
    expired = Authority(is_expired=True)
    client.certificate = expired.issue(CLIENT)
    server = await net.server(certificate=expired.issue(SERVER), trusts_all=True)
    client.decide = lambda _: through(server.address)

    await net.user(client)

    await (await server.tunnel()).asked()


async def test_intermediate_in_the_bundle_is_an_anchor(
    server: Plane, net: Net, root: Authority
) -> None:
    below = root.intermediate("below")
    below.roots_pem = below.pem
    server.certificate = below.issue(SERVER)

    tunnel = await call(server, net, below.issue(CLIENT))

    await tunnel.fence()


# --- what else is looked at


async def test_usage_of_the_key_is_not_looked_at(serving: Plane, net: Net, root: Authority) -> None:
    leaf = Leaf([x509.UniformResourceIdentifier(str(CLIENT))], signs=False)

    tunnel = await call(serving, net, root.issue(CLIENT, leaf))

    await tunnel.fence()


def names(identity: Identity) -> list[x509.GeneralName]:
    """What a workload is called."""
    return [x509.UniformResourceIdentifier(str(identity))]


UNKNOWN_EXTENSION = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
REFUSED = {
    "expired": (Leaf(names(CLIENT), is_expired=True), "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    "not valid yet": (Leaf(names(CLIENT), is_early=True), "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    "another trust domain": (uris(str(ELSEWHERE)), "SSLV3_ALERT_CERTIFICATE_UNKNOWN"),
    "no name": (Leaf(), "SSLV3_ALERT_CERTIFICATE_UNKNOWN"),
    "an authority": (Leaf(names(CLIENT), is_ca=True), ""),
    "unknown critical extension": (Leaf(names(CLIENT), more=UNKNOWN_EXTENSION), ""),
}


@pytest.mark.parametrize(("leaf", "alert"), REFUSED.values(), ids=REFUSED)
async def test_client_that_is_refused_is_told_by_the_right_alert(
    serving: Plane, net: Net, root: Authority, leaf: Leaf, alert: str
) -> None:
    tunnel = await call(serving, net, root.issue(CLIENT, leaf))

    await tunnel.closed()

    assert tunnel.alert
    assert tunnel.alert == (alert or tunnel.alert)
    assert (await serving.denied()).reason is Reason.TLS_HANDSHAKE


@pytest.mark.parametrize(("length", "is_let_in"), [(6, True), (7, False)])
async def test_client_below_six_intermediates_is_accepted_and_below_seven_refused(
    serving: Plane, net: Net, root: Authority, length: int, is_let_in: bool
) -> None:
    issuer = root
    for number in range(length):
        issuer = issuer.intermediate(f"number {number}")

    tunnel = await call(serving, net, issuer.issue(CLIENT))

    if is_let_in:
        await tunnel.fence()
    else:
        await tunnel.closed()
        assert tunnel.alert == "TLSV1_ALERT_UNKNOWN_CA"


async def test_client_that_presents_more_than_a_chain_is_not_listened_to(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    more = dataclasses.replace(certificate, chain_pem=certificate.chain_pem + 200 * root.pem)

    tunnel = await call(serving, net, more)

    await tunnel.closed()
    assert tunnel.alert
    assert (await serving.denied()).reason is Reason.TLS_HANDSHAKE


async def test_intermediate_for_servers_only_issues_no_clients(
    serving: Plane, net: Net, root: Authority
) -> None:
    tunnel = await call(serving, net, root.intermediate("odd", [SERVER_AUTH]).issue(CLIENT))

    await tunnel.closed()

    assert tunnel.alert == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"


async def test_client_that_is_revoked_is_told_so(serving: Plane, net: Net, root: Authority) -> None:
    certificate = root.issue(CLIENT)
    await serving.engine.revocations_set((root.crl(certificate),))

    tunnel = await call(serving, net, certificate)

    await tunnel.closed()
    assert tunnel.alert == "SSLV3_ALERT_CERTIFICATE_REVOKED"


async def test_client_whose_list_cannot_be_used_is_told_by_handshake_failure(
    serving: Plane, net: Net, root: Authority
) -> None:
    await serving.engine.revocations_set((root.crl(signer=Authority("stranger")),))

    tunnel = await call(serving, net, root.issue(CLIENT))

    await tunnel.closed()
    assert tunnel.alert == "SSLV3_ALERT_HANDSHAKE_FAILURE"


async def test_forged_client_is_told_by_decrypt_error(
    serving: Plane, net: Net, root: Authority
) -> None:
    tunnel = await call(serving, net, forged(root.issue(CLIENT)))

    await tunnel.closed()

    assert tunnel.alert == "TLSV1_ALERT_DECRYPT_ERROR"


@pytest.mark.parametrize(("bits", "is_let_in"), [(1024, False), (2048, True)])
async def test_client_with_a_short_key_is_refused(
    serving: Plane, net: Net, root: Authority, bits: int, is_let_in: bool
) -> None:
    tunnel = await call(serving, net, root.issue_rsa(CLIENT, bits))

    if is_let_in:
        await tunnel.fence()
    else:
        await tunnel.closed()
        assert tunnel.alert


@pytest.mark.parametrize("which", [0, 1])
async def test_roots_of_one_name_are_told_apart_by_their_keys(
    serving: Plane, net: Net, root: Authority, which: int
) -> None:
    roots = [root, Authority()]
    both = b"".join(one.pem for one in roots)
    serving.certificate = dataclasses.replace(root.issue(SERVER), roots_pem=both)

    tunnel = await call(serving, net, roots[which].issue(CLIENT))

    await tunnel.fence()


@pytest.mark.spec("ops-40")
async def test_server_that_is_somebody_else_is_told_and_logged_with_both_names(
    client: Plane, net: Net, root: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    client.certificate = root.issue(CLIENT)
    server = await net.server(certificate=root.issue(ELSEWHERE))
    client.decide = lambda _: through(server.address, sans=(SERVER, THIRD))

    await net.user(client)

    AccessLog().record(await client.closed())
    (line,) = capfd.readouterr().err.splitlines()
    assert f"the expected SAN ({SERVER},{THIRD}), got {ELSEWHERE}" in line
    await until(lambda: server.alerts == ["SSLV3_ALERT_CERTIFICATE_UNKNOWN"], "the alert")


SERVERS = {
    "expired": (Leaf(names(SERVER), is_expired=True), "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    "not valid yet": (Leaf(names(SERVER), is_early=True), "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
}


@pytest.mark.parametrize(("leaf", "alert"), SERVERS.values(), ids=SERVERS)
async def test_server_that_is_not_believed_is_told_by_the_right_alert(
    client: Plane, net: Net, root: Authority, leaf: Leaf, alert: str
) -> None:
    client.certificate = root.issue(CLIENT)
    server = await net.server(certificate=root.issue(SERVER, leaf))
    client.decide = lambda _: through(server.address)

    user = await net.user(client)

    assert await user.read_all() == b""
    await until(lambda: bool(server.alerts), "an alert")
    assert server.alerts == [alert]


async def test_server_that_is_revoked_is_told_so(client: Plane, net: Net, root: Authority) -> None:
    certificate = root.issue(SERVER)
    client.certificate = root.issue(CLIENT)
    server = await net.server(certificate=certificate)
    client.decide = lambda _: through(server.address)
    await client.engine.revocations_set((root.crl(certificate),))

    user = await net.user(client)

    assert await user.read_all() == b""
    await until(lambda: server.alerts == ["SSLV3_ALERT_CERTIFICATE_REVOKED"], "the alert")


# --- post-quantum key exchange


@pytest.mark.spec("ops-46")
@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO < (3, 5), reason="X25519MLKEM768: OpenSSL 3.5")
async def test_post_quantum_engine_offers_and_takes_that_and_nothing_else(
    planes: Planes, net: Net
) -> None:
    ours, theirs = await planes(CLIENT, post_quantum=True), await planes(SERVER, post_quantum=True)
    classic = await planes(CLIENT)
    app = await net.app()
    theirs.decide = lambda _: forward(app.address, reporter="destination")
    ours.decide = lambda _: through(theirs.port(Role.INBOUND), str(app.address))

    await net.user(ours)
    await app.accept()

    listener = await net.app()
    ours.decide = lambda _: through(listener.address)
    await net.user(ours)
    hello = ClientHello.parse(await (await listener.accept()).read_some())
    assert hello.groups == [X25519MLKEM768]
    context = tls_context(net.certify(CLIENT), is_server=False)
    context.set_ecdh_curve("prime256v1")
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        await net.raw_tunnel(theirs.port(Role.INBOUND), context=context)
    classic.decide = lambda _: through(listener.address)
    await net.user(classic)
    hello = ClientHello.parse(await (await listener.accept()).read_some())
    assert hello.groups == [X25519, P_256, P_384, X25519MLKEM768]


@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO >= (3, 5), reason="this OpenSSL knows the group")
async def test_post_quantum_engine_does_not_start_where_openssl_does_not_know_it() -> None:
    with pytest.raises(StartError, match="X25519MLKEM768 is not known to OpenSSL"):
        NativeEngine().start(EngineSettings(post_quantum=True))


# --- beside Python's TLS


async def test_new_certificate_does_not_disturb_the_programs_own_tls(serving: Plane) -> None:
    """What the library has said of a certificate is not taken for a failure of the next read."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls_context(None, is_server=False).wrap_bio(to_client, to_server)
    server = tls_context(serving.certificate, is_server=True, trusts_all=True).wrap_bio(
        to_server, to_client, server_side=True
    )
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    client.write(b"before")
    assert server.read() == b"before"

    assert serving.certificate is not None
    serving.engine.identity_set(WORKLOAD, serving.certificate)

    with pytest.raises(ssl.SSLWantReadError):
        server.read()
    client.write(b"after")
    assert server.read() == b"after"
