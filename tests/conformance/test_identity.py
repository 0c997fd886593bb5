# SPDX-License-Identifier: Apache-2.0
"""Whose certificate is accepted, and which of its names counts: spec identity-ops, A.6 to A.9."""

from __future__ import annotations

import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.decide.build import SERVES, VIP, decide
from tests.state.build import pod, service
from tests.support.authority import BOTH, CLIENT_AUTH, SERVER_AUTH, Authority, Leaf, uris
from tests.support.plane import CLIENT, SERVER, WORKLOAD, inbound_key, through
from tests.support.tls import tls_context
from tests.support.wait import until
from ztunnel_py.dataplane.abc import Role
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from tests.support.net import Net
    from tests.support.plane import Plane, Planes
    from tests.support.wire import Wire
    from ztunnel_py.identity.certificates import WorkloadCertificate

ELSEWHERE = Identity("elsewhere.local", "ns", "client")
TLS12_SUITES = {"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"}
CHACHA = "ECDHE-ECDSA-CHACHA20-POLY1305"
URI = x509.UniformResourceIdentifier


@pytest.fixture(scope="module")
def root() -> Authority:
    """An authority that does as it is told."""
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
    """A client's connection after its side of the handshake, and its request."""
    tunnel = await net.raw_tunnel(plane.port(Role.INBOUND), certificate)
    tunnel.greet()
    tunnel.connect()
    return tunnel


# --- versions and suites


@pytest.mark.spec("ops-33")
async def test_client_of_tls_12_only_is_refused(serving: Plane, net: Net, root: Authority) -> None:
    context = tls_context(root.issue(CLIENT), is_server=False)
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        await net.raw_tunnel(serving.port(Role.INBOUND), context=context)

    assert (await serving.denied()).reason is Reason.TLS_HANDSHAKE


@pytest.mark.spec("ops-33")
@pytest.mark.parametrize("suites", ["ALL", *sorted(TLS12_SUITES)])
async def test_client_of_tls_12_is_accepted_with_a_listed_suite_if_enabled(
    planes: Planes, net: Net, root: Authority, suites: str
) -> None:
    plane = await planes(SERVER, tls12=True)
    plane.certificate = root.issue(SERVER)
    context = tls_context(root.issue(CLIENT), is_server=False)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suites)

    tunnel = await net.raw_tunnel(plane.port(Role.INBOUND), context=context)
    tunnel.greet()
    await tunnel.fence()

    version, suite = tunnel.version_and_suite
    assert version == "TLSv1.2"
    assert suite in TLS12_SUITES


@pytest.mark.parametrize("suites", [CHACHA, "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA"])
async def test_client_of_tls_12_with_other_suites_is_refused(
    planes: Planes, net: Net, root: Authority, suites: str
) -> None:
    plane = await planes(SERVER, tls12=True)
    plane.certificate = root.issue(SERVER)
    context = tls_context(root.issue(CLIENT), is_server=False)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suites)

    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        await net.raw_tunnel(plane.port(Role.INBOUND), context=context)

    assert (await plane.denied()).reason is Reason.TLS_HANDSHAKE


async def test_server_of_tls_12_is_reached_if_enabled(
    planes: Planes, net: Net, root: Authority
) -> None:
    plane = await planes(CLIENT, tls12=True)
    plane.certificate = root.issue(CLIENT)
    server = await net.server(certificate=root.issue(SERVER))
    server.context.maximum_version = ssl.TLSVersion.TLSv1_2
    plane.decide = lambda _: through(server.address)

    await net.user(plane)

    tunnel = await server.tunnel()
    await tunnel.asked()
    version, suite = tunnel.version_and_suite
    assert version == "TLSv1.2"
    assert suite in TLS12_SUITES


async def test_server_of_tls_12_only_is_not_spoken_to(
    dialling: Plane, net: Net, root: Authority
) -> None:
    server = await net.server(certificate=root.issue(SERVER))
    server.context.maximum_version = ssl.TLSVersion.TLSv1_2
    dialling.decide = lambda _: through(server.address)

    user = await net.user(dialling)

    assert await user.read_all() == b""
    assert (await dialling.closed()).reason is Reason.IO
    assert not server.tunnels


# --- who is let in


@pytest.mark.spec("ops-35")
async def test_client_without_a_certificate_is_told_that_one_is_required(
    server: Plane, net: Net
) -> None:
    tunnel = await net.raw_tunnel(server.port(Role.INBOUND))
    tunnel.greet()

    await tunnel.closed()

    assert tunnel.alert == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert (await server.denied()).reason is Reason.TLS_HANDSHAKE


@pytest.mark.spec("ops-36")
async def test_client_of_another_trust_domain_is_refused_though_our_root_signed(
    serving: Plane, net: Net, root: Authority
) -> None:
    tunnel = await call(serving, net, root.issue(ELSEWHERE))

    await tunnel.closed()

    record = await serving.denied()
    assert record.reason is Reason.TLS_HANDSHAKE
    assert "expected trustdomain (cluster.local)" in record.detail
    assert not serving.flows


@pytest.mark.spec("ops-37")
@pytest.mark.parametrize(
    "first",
    [
        URI("https://example.com/ns/ns/sa/first"),
        URI("SPIFFE://cluster.local/ns/ns/sa/first"),
        URI("spiffe://cluster.local/ns/ns/sa"),
        URI("spiffe://cluster.local/ns/ns/sa/first/"),
        URI("spiffe://cluster.local/namespace/ns/sa/first"),
        URI("spiffe://cluster.local/ns/ns/account/first"),
        x509.DNSName("spiffe://cluster.local/ns/ns/sa/first"),
    ],
    ids=lambda name: f"{type(name).__name__} {name.value}",
)
async def test_first_name_that_is_a_spiffe_id_is_the_identity(
    serving: Plane, net: Net, root: Authority, first: x509.GeneralName
) -> None:
    third = URI(str(Identity("cluster.local", "ns", "third")))
    leaf = Leaf([first, URI(str(CLIENT)), third])

    await call(serving, net, root.issue(CLIENT, leaf))

    assert inbound_key(await serving.asked()).identity == CLIENT


@pytest.mark.parametrize(
    "leaf", [Leaf(), uris("https://example.com"), uris("spiffe://cluster.local")], ids=str
)
async def test_client_without_a_spiffe_id_is_refused(
    serving: Plane, net: Net, root: Authority, leaf: Leaf
) -> None:
    tunnel = await call(serving, net, root.issue(CLIENT, leaf))

    await tunnel.closed()

    assert (await serving.denied()).reason is Reason.TLS_HANDSHAKE
    assert not serving.flows


@pytest.mark.spec("ops-44")
async def test_client_without_extended_usages_is_accepted(
    serving: Plane, net: Net, root: Authority
) -> None:
    await call(serving, net, root.issue(CLIENT, Leaf([URI(str(CLIENT))], usages=None)))

    await serving.asked()


@pytest.mark.spec("ops-44")
async def test_client_with_the_usage_of_a_server_only_is_refused(
    serving: Plane, net: Net, root: Authority
) -> None:
    leaf = Leaf([URI(str(CLIENT))], usages=[SERVER_AUTH])

    tunnel = await call(serving, net, root.issue(CLIENT, leaf))

    await tunnel.closed()
    assert tunnel.alert == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"
    assert not serving.flows


async def test_expired_client_is_refused(serving: Plane, net: Net, root: Authority) -> None:
    leaf = Leaf([URI(str(CLIENT))], is_expired=True)

    tunnel = await call(serving, net, root.issue(CLIENT, leaf))

    await tunnel.closed()
    assert tunnel.alert == "SSLV3_ALERT_CERTIFICATE_EXPIRED"


async def test_client_below_intermediates_is_accepted_with_its_chain_in_any_order(
    serving: Plane, net: Net, root: Authority
) -> None:
    below = root.intermediate("first").intermediate("second").issue(CLIENT)
    leaf, second, first = x509.load_pem_x509_certificates(below.chain_pem)
    mixed = b"".join(one.public_bytes(Encoding.PEM) for one in (leaf, first, second))

    for chain in (below.chain_pem, mixed):
        await call(serving, net, replace(below, chain_pem=chain))

    await serving.asked(2)


async def test_client_with_intermediates_that_nobody_needs_is_accepted(
    serving: Plane, net: Net, root: Authority
) -> None:
    certificate = root.issue(CLIENT)
    unused = Authority("unused").pem + root.intermediate("other").pem

    await call(serving, net, replace(certificate, chain_pem=certificate.chain_pem + unused))

    await serving.asked()


async def test_client_below_an_expired_intermediate_is_refused(
    serving: Plane, net: Net, root: Authority
) -> None:
    tunnel = await call(serving, net, root.intermediate("expired", is_expired=True).issue(CLIENT))

    await tunnel.closed()
    assert not serving.flows


@pytest.mark.parametrize("which", [0, 1])
async def test_each_of_several_roots_is_trusted(
    serving: Plane, net: Net, root: Authority, which: int
) -> None:
    roots = [root, Authority("other")]
    both = b"".join(one.pem for one in roots)
    serving.certificate = replace(root.issue(SERVER), roots_pem=both)

    await call(serving, net, replace(roots[which].issue(CLIENT), roots_pem=both))

    await serving.asked()


# --- who is believed


@pytest.mark.spec("ops-44")
async def test_server_without_extended_usages_is_believed(
    dialling: Plane, net: Net, root: Authority
) -> None:
    leaf = Leaf([URI(str(SERVER))], usages=None)
    server = await net.server(certificate=root.issue(SERVER, leaf))
    dialling.decide = lambda _: through(server.address)

    await net.user(dialling)

    await (await server.tunnel()).asked()


@pytest.mark.spec("ops-44")
async def test_server_with_the_usage_of_a_client_only_is_not_believed(
    dialling: Plane, net: Net, root: Authority
) -> None:
    leaf = Leaf([URI(str(SERVER))], usages=[CLIENT_AUTH])
    server = await net.server(certificate=root.issue(SERVER, leaf))
    dialling.decide = lambda _: through(server.address)

    user = await net.user(dialling)

    assert await user.read_all() == b""
    assert (await dialling.closed()).reason is Reason.IO
    await until(lambda: server.alerts == ["SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"], "an alert")


@pytest.mark.parametrize("usages", [BOTH, [SERVER_AUTH]])
async def test_server_is_believed_by_any_of_its_names(
    dialling: Plane,
    net: Net,
    root: Authority,
    usages: tuple[x509.ObjectIdentifier, ...],
) -> None:
    names = [URI("https://example.com"), URI(str(ELSEWHERE)), URI(str(SERVER))]
    server = await net.server(certificate=root.issue(SERVER, Leaf(names, usages)))
    dialling.decide = lambda _: through(server.address)

    await net.user(dialling)

    await (await server.tunnel()).asked()
    (view,) = dialling.engine.tunnels()
    assert view.identity == str(SERVER)


@pytest.mark.spec("ops-41")
async def test_server_is_believed_by_an_alternative_name_of_its_service(
    dialling: Plane, net: Net, root: Authority
) -> None:
    shared = Identity("cluster.local", "shop", "shared")
    verdict = decide(
        service("web.test", f"/{VIP}", subject_alt_names=(str(shared),)),
        pod("web", "10.0.0.2", serves=SERVES),
        to=f"{VIP}:80",
    )
    server = await net.server(certificate=root.issue(shared))
    (hop,) = verdict.hops
    dialling.decide = lambda _: replace(verdict, hops=(replace(hop, address=server.address),))

    await net.user(dialling)

    await (await server.tunnel()).asked()
    (view,) = dialling.engine.tunnels()
    assert view.identity == str(shared)


async def test_new_roots_count_from_the_next_handshake(
    serving: Plane, net: Net, root: Authority
) -> None:
    await call(serving, net, root.issue(CLIENT))
    await serving.asked()
    other = Authority("other")

    serving.engine.identity_set(WORKLOAD, other.issue(SERVER))
    refused = await net.raw_tunnel(
        serving.port(Role.INBOUND),
        context=tls_context(root.issue(CLIENT), is_server=False, trusts_all=True),
    )

    await refused.closed()
    assert refused.alert == "TLSV1_ALERT_UNKNOWN_CA"
    await call(serving, net, other.issue(CLIENT))
    await serving.asked(2)
