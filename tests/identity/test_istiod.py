# SPDX-License-Identifier: Apache-2.0
"""The mesh's authority, asked over TLS as istiod is: what is sent, what is made of the answer."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tests.support.authority import Authority
from tests.support.istio_ca import TOKEN, IstioCa
from tests.support.rpc import RpcServer, server_certificate
from tests.support.wait import until
from ztunnel_py.admin.dump import dump_certificates
from ztunnel_py.config_values import Secret
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.istiod import Istiod
from ztunnel_py.identity.manager import CertificateState, CertificateStatus
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.rpc.roots import Roots
from ztunnel_py.rpc.server import Server
from ztunnel_py.rpc.token import Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from ztunnel_py.identity.certificates import WorkloadCertificate

CART = Identity("cluster.local", "shop", "cart")
HOUR = 3600.0


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("mesh")


@pytest.fixture
def ca(root: Authority) -> IstioCa:
    return IstioCa(root)


@pytest.fixture
async def server(root: Authority, ca: IstioCa) -> AsyncIterator[RpcServer]:
    async with RpcServer() as server:
        ca.add_to(server.grpc)
        yield await server.start(server_certificate(root, "localhost"))


@pytest.fixture
def described(server: RpcServer, root: Authority) -> Server:
    return describe(server, root)


def describe(server: RpcServer, root: Authority, second_name: str | None = None) -> Server:
    """An authority as settings describe it."""
    return Server(
        address=server.address,
        roots=Roots.decide("CA_ROOT_CA", root.pem.decode()),
        second_name=second_name,
        tls12=False,
        token=Token.decide(Secret(TOKEN), "Kubernetes"),
        headers=(),
    )


async def issued(
    server: Server,
    identity: Identity = CART,
    *,
    shared: bool = True,
    ttl_s: float = HOUR,
    answer_s: float = 10.0,
) -> WorkloadCertificate:
    """What a client of its own gets."""
    istiod = Istiod(server, ttl_s=ttl_s, impersonates=shared, answer_s=answer_s)
    with stopping(istiod):
        return await istiod.issue(identity)


@contextmanager
def stopping(istiod: Istiod) -> Iterator[None]:
    yield
    istiod.stop()


async def refusal(server: Server) -> str:
    """Why there is no certificate."""
    with pytest.raises(IdentityError) as failed:
        await issued(server)
    return str(failed.value)


# --- what is asked


@pytest.mark.spec("ops-3")
async def test_request_is_accepted_by_a_strict_authority(described: Server, ca: IstioCa) -> None:
    """Which insists on PEM, no subject, one critical URI, P-256 and SHA-256."""
    certificate = await issued(described)

    assert [asked.name for asked in ca.asked] == [str(CART)]
    assert certificate.identity == CART
    assert certificate.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert certificate.not_after - certificate.not_before == HOUR + 120


@pytest.mark.spec("ops-4")
async def test_each_request_has_a_key_of_its_own(described: Server, ca: IstioCa) -> None:
    first, second = await issued(described), await issued(described)

    assert ca.asked[0].public_key != ca.asked[1].public_key
    assert [public_key(certificate) for certificate in (first, second)] == [
        asked.public_key for asked in ca.asked
    ]


def public_key(certificate: WorkloadCertificate) -> bytes:
    key = load_pem_private_key(certificate.key_pem, None).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.spec("ops-5")
async def test_identity_is_impersonated_in_shared_mode_only(described: Server, ca: IstioCa) -> None:
    await issued(described)
    ca.shared = False
    await issued(described, shared=False)

    assert [asked.impersonates for asked in ca.asked] == [str(CART), None]


@pytest.mark.parametrize(("ttl_s", "asked"), [(HOUR, 3600), (1.9, 1), (2.0**64, 86400)])
async def test_lifetime_is_asked_for_in_whole_seconds(
    ttl_s: float, asked: int, described: Server, ca: IstioCa
) -> None:
    await issued(described, ttl_s=ttl_s)

    assert ca.asked[0].ttl_s == asked


@pytest.mark.spec("ops-7")
async def test_token_file_is_read_for_each_request(
    described: Server, ca: IstioCa, tmp_path: Path
) -> None:
    file = tmp_path / "istio-token"
    file.write_text("first")
    ca.tokens, ca.cluster_id = {"first", "second"}, "east"
    token = Token.decide(Secret(str(file)), "east")
    istiod = Istiod(replace(described, token=token), ttl_s=HOUR, impersonates=True)

    with stopping(istiod):
        await istiod.issue(CART)
        file.write_text("second")
        await istiod.issue(CART)

    sent = [(a.headers["authorization"], a.headers["clusterid"]) for a in ca.asked]
    assert sent == [("Bearer first", "east"), ("Bearer second", "east")]


@pytest.mark.spec("ops-8")
async def test_nothing_is_asked_with_an_empty_token(
    described: Server, ca: IstioCa, tmp_path: Path
) -> None:
    file = tmp_path / "istio-token"
    file.touch()
    ca.tokens = None
    described = replace(described, token=Token.decide(Secret(str(file)), "Kubernetes"))

    error = await refusal(described)

    assert "token file exists, but was empty" in error
    assert not ca.asked


async def test_without_a_token_neither_header_is_sent(described: Server, ca: IstioCa) -> None:
    ca.tokens = None

    await issued(replace(described, token=None))

    assert not {"authorization", "clusterid"} & set(ca.asked[0].headers)


async def test_headers_of_the_settings_are_sent(described: Server, ca: IstioCa) -> None:
    await issued(replace(described, headers=(("foo", Secret("bar")),)))

    assert ca.asked[0].headers["foo"] == "bar"


# --- what is made of the answer


@pytest.mark.spec("ops-14")
async def test_chain_and_roots_are_told_apart(root: Authority) -> None:
    below = root.intermediate("below").intermediate("further below")
    below.roots_pem += Authority("next root").pem
    ca = IstioCa(below)
    async with RpcServer() as server:
        ca.add_to(server.grpc)
        await server.start(server_certificate(root, "localhost"))
        certificate = await issued(describe(server, root))

    status = CertificateStatus(CART, CertificateState.AVAILABLE, certificate, "")
    (shown,) = dump_certificates([status])
    assert (len(shown["certChain"]), len(shown["rootCerts"])) == (3, 2)


async def test_intermediate_is_the_first_certificate_of_its_text(
    described: Server, ca: IstioCa
) -> None:
    extra = Authority("extra").pem.decode()
    ca.chain = lambda leaf, _, roots: [leaf, extra + roots, roots]

    certificate = await issued(described)

    assert certificate.chain_pem.endswith(extra.encode())
    assert len(x509.load_pem_x509_certificates(certificate.chain_pem)) == 2


GARBAGE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("chain", "error"),
    [
        (lambda leaf, _, roots: [], f"chain returned from CA is empty for: {CART}"),
        (
            lambda leaf, _, roots: [leaf],
            "failed to create CSR: invalid root certificate: no root certificate present",
        ),
        (lambda leaf, _, roots: ["", roots], "failed to create CSR: certificate: "),
        (lambda leaf, _, roots: [GARBAGE, roots], "failed to create CSR: certificate: "),
        (lambda leaf, _, roots: [leaf, GARBAGE], "failed to create CSR: certificate: "),
        (lambda leaf, _, roots: [leaf, "x", roots], "failed to create CSR: certificate: "),
        (lambda leaf, _, roots: [leaf, roots + GARBAGE], "failed to create CSR: certificate: "),
        (lambda leaf, _, roots: [roots, roots], "failed to create CSR: the private key is not"),
        (lambda leaf, _, roots: [leaf, roots * 3000], "failed to create CSR: .*the limit is"),
    ],
    ids=["empty", "no root", "blank", "leaf", "root", "intermediate", "a root", "key", "huge"],
)
@pytest.mark.spec("ops-12")
async def test_answer_that_is_no_chain_is_refused(
    chain: Callable[[str, list[str], str], list[str]], error: str, described: Server, ca: IstioCa
) -> None:
    ca.chain = chain

    with pytest.raises(IdentityError, match=f"^{error}"):
        await issued(described)


@pytest.mark.spec("ops-13")
async def test_leaf_of_somebody_else_is_refused_in_shared_mode(
    described: Server, ca: IstioCa
) -> None:
    ca.name = lambda asked: f"{asked}-not"

    assert await refusal(described) == f"did not find expected SAN: {CART}"


async def test_dedicated_mode_takes_the_name_that_the_authority_grants(
    described: Server, ca: IstioCa
) -> None:
    ca.shared, ca.own_name = False, "spiffe://cluster.local/ns/vm/sa/vm"

    assert (await issued(described, shared=False)).identity == CART


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (
            grpc.StatusCode.UNAUTHENTICATED,
            "request impersonation authentication failure",
            "signing gRPC error (The request does not have valid authentication credentials): "
            "request impersonation authentication failure",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "",
            "signing gRPC error (The service is currently unavailable): ",
        ),
    ],
)
async def test_refusal_is_told_in_the_words_of_ztunnel(
    status: grpc.StatusCode, message: str, error: str, described: Server, ca: IstioCa
) -> None:
    ca.fails_with = status, message

    assert await refusal(described) == error


async def test_wrong_token_is_refused_by_the_authority(described: Server, ca: IstioCa) -> None:
    ca.tokens = {"another"}

    assert (await refusal(described)).endswith(": request authenticate failure")


async def test_authority_that_never_answers_is_given_up(described: Server, ca: IstioCa) -> None:
    ca.gate.clear()

    with pytest.raises(IdentityError, match=r"Deadline expired.*no answer from https://localhost"):
        await issued(described, answer_s=0.05)


async def test_identity_that_no_certificate_can_name_is_refused(
    described: Server, ca: IstioCa
) -> None:
    with pytest.raises(IdentityError, match="failed to create CSR"):
        await issued(described, Identity("cluster.local", "sh\u00f6p", "cart"))

    assert not ca.asked


# --- the authority's own certificate


@pytest.mark.spec("ops-47")
async def test_second_name_of_the_authority_is_accepted(root: Authority, ca: IstioCa) -> None:
    """Its certificate is valid for that name only; `tests/rpc` shows that SNI is the address."""
    async with RpcServer() as server:
        ca.add_to(server.grpc)
        await server.start(server_certificate(root, "istiod.istio-system.svc"))
        described = describe(server, root, second_name="istiod.istio-system.svc")

        assert (await issued(described)).identity == CART


async def moved(server: RpcServer, ca: IstioCa, root: Authority) -> RpcServer:
    """The same authority on the same port, with a certificate of another root."""
    await server.stop()
    again = RpcServer()
    ca.add_to(again.grpc)
    return await again.start(server_certificate(root, "localhost"), server.port)


@pytest.mark.spec("ops-48")
async def test_replaced_roots_are_used_without_a_restart(
    described: Server, server: RpcServer, ca: IstioCa, root: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "root-cert.pem"
    file.write_bytes(root.pem)
    described = replace(described, roots=Roots.decide("CA_ROOT_CA", str(file)))
    new_root = Authority("new")
    istiod = Istiod(described, ttl_s=HOUR, impersonates=True)
    with stopping(istiod):
        await istiod.issue(CART)

        async with await moved(server, ca, new_root):
            with pytest.raises(IdentityError, match="CERTIFICATE_VERIFY_FAILED"):
                await istiod.issue(CART)
            replaced = tmp_path / "new"
            replaced.write_bytes(new_root.pem)
            replaced.rename(file)

            assert (await istiod.issue(CART)).identity == CART


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
async def test_old_roots_serve_while_the_file_is_damaged(
    damage: str, described: Server, server: RpcServer, ca: IstioCa, root: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "root-cert.pem"
    file.write_bytes(root.pem)
    described = replace(described, roots=Roots.decide("CA_ROOT_CA", str(file)))
    istiod = Istiod(described, ttl_s=HOUR, impersonates=True)
    new_root = Authority("new")
    with stopping(istiod):
        await istiod.issue(CART)
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(new_root.pem[:300] if damage == "cut" else b"")
        async with await moved(server, ca, root) as again:
            assert (await istiod.issue(CART)).identity == CART

            file.write_bytes(new_root.pem)
            async with await moved(again, ca, new_root):
                assert (await istiod.issue(CART)).identity == CART


async def test_calls_on_the_way_outlive_a_change_of_roots(
    described: Server, ca: IstioCa, root: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "root-cert.pem"
    file.write_bytes(root.pem)
    described = replace(described, roots=Roots.decide("CA_ROOT_CA", str(file)))
    istiod = Istiod(described, ttl_s=HOUR, impersonates=True)
    with stopping(istiod):
        ca.gate.clear()
        early = asyncio.ensure_future(istiod.issue(CART))
        await until(lambda: ca.in_flight == 1, "the call")
        file.write_bytes(root.pem + Authority("next").pem)
        late = asyncio.ensure_future(istiod.issue(CART))
        await until(lambda: ca.in_flight == 2, "a call with the new roots")

        ca.gate.set()

        assert [(await call).identity for call in (early, late)] == [CART, CART]
