# SPDX-License-Identifier: Apache-2.0
"""From the environment to a certificate: who is asked, and with what."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.authority import Authority
from tests.support.clock import FakeClock
from tests.support.istio_ca import TOKEN, IstioCa
from tests.support.rpc import RpcServer, server_certificate
from tests.support.spire import Agent
from tests.support.wait import DEADLINE_S
from ztunnel_py import config
from ztunnel_py.identity import source
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.rpc.server import Server
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ztunnel_py.identity.certificates import WorkloadCertificate

CART = Identity("cluster.local", "shop", "cart")
DEDICATED = {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "shop/cart-0/cart"}


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
def environ(server: RpcServer, root: Authority, tmp_path: Path) -> dict[str, str]:
    """What the official chart gives a node's proxy, here on loopback."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "root-cert.pem").write_bytes(root.pem)
    return {
        "CA_ADDRESS": f"localhost:{server.port}",
        "CA_ROOT_CA": str(tmp_path / "root-cert.pem"),
        "AUTH_TOKEN": str(tmp_path / "token"),
    }


async def issued(environ: dict[str, str], directory: Path) -> WorkloadCertificate:
    """What a proxy with these variables gets for its workload."""
    tasks = Tasks()
    made = source.chosen(config.load(environ, directory), FakeClock(), tasks)
    made.start(lambda _: True)
    try:
        return await made.issue(CART)
    finally:
        await tasks.stop()
        made.stop()


@pytest.mark.spec("ops-6")
@pytest.mark.parametrize(("ttl", "seconds"), [({}, 86400), ({"SECRET_TTL": "1h"}, 3600)])
async def test_lifetime_of_the_settings_is_asked_for(
    ttl: dict[str, str], seconds: int, environ: dict[str, str], ca: IstioCa, tmp_path: Path
) -> None:
    await issued({**environ, **ttl}, tmp_path)

    assert ca.asked[0].ttl_s == seconds


async def test_node_proxy_asks_for_others_and_a_dedicated_one_for_itself(
    environ: dict[str, str], ca: IstioCa, tmp_path: Path
) -> None:
    await issued(environ, tmp_path)
    ca.shared, ca.own_name = False, str(CART)
    await issued(environ | DEDICATED, tmp_path)

    assert [asked.impersonates for asked in ca.asked] == [str(CART), None]


@pytest.mark.spec("ops-9")
async def test_without_any_token_nobody_says_who_asks(
    environ: dict[str, str], ca: IstioCa, tmp_path: Path
) -> None:
    ca.tokens = None
    del environ["AUTH_TOKEN"]

    await issued(environ, tmp_path)

    assert not {"authorization", "clusterid"} & set(ca.asked[0].headers)


@pytest.mark.parametrize("names", [{"ISTIO_META_CLUSTER_ID": "east"}, {"CLUSTER_ID": "east"}])
async def test_cluster_is_told_with_the_token(
    names: dict[str, str], environ: dict[str, str], ca: IstioCa, tmp_path: Path
) -> None:
    ca.cluster_id = "east"

    await issued(environ | names, tmp_path)

    assert ca.asked[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.spec("ops-10")
async def test_headers_of_authority_and_discovery_are_their_own(
    environ: dict[str, str], server: RpcServer, ca: IstioCa, tmp_path: Path
) -> None:
    seen: list[dict[str, str | bytes]] = []

    async def hear(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        seen.append(dict(context.invocation_metadata() or ()))
        return b""

    server.add("discovery", Hear=grpc.unary_unary_rpc_method_handler(hear))
    environ |= {"CA_HEADER_FOO": "bar", "XDS_HEADER_BAZ": "x"}
    environ |= {"XDS_ADDRESS": environ["CA_ADDRESS"], "XDS_ROOT_CA": environ["CA_ROOT_CA"]}

    await issued(environ, tmp_path)
    with closing(Server.discovery(config.load(environ, tmp_path)).channel()) as channel:
        await channel.unary("/discovery/Hear", b"", DEADLINE_S)

    assert [
        {"foo": headers.get("foo"), "baz": headers.get("baz")}
        for headers in (ca.asked[0].headers, seen[0])
    ] == [{"foo": "bar", "baz": None}, {"foo": None, "baz": "x"}]


async def test_roots_may_be_given_as_text(
    environ: dict[str, str], root: Authority, tmp_path: Path
) -> None:
    environ["CA_ROOT_CA"] = root.pem.decode()

    assert (await issued(environ, tmp_path)).identity == CART


async def test_roots_that_were_not_there_at_start_are_named(
    environ: dict[str, str], tmp_path: Path
) -> None:
    del environ["CA_ROOT_CA"]

    with pytest.raises(IdentityError, match=r"CA_ROOT_CA \(./var/run.*\): was no file when"):
        await issued(environ, tmp_path)


async def test_plain_http_is_refused_at_each_call(environ: dict[str, str], tmp_path: Path) -> None:
    environ["CA_ADDRESS"] = environ["CA_ADDRESS"].replace("localhost", "http://localhost")

    with pytest.raises(IdentityError, match="only https can be connected to"):
        await issued(environ, tmp_path)


async def test_certificate_may_come_from_files(root: Authority, tmp_path: Path) -> None:
    certificate = root.issue(CART)

    assert await issued(DEDICATED | files(certificate, tmp_path), tmp_path) == certificate


def files(certificate: WorkloadCertificate, directory: Path) -> dict[str, str]:
    """The certificate as files, and the settings that name them."""
    named = {"ZTUNNEL_IDENTITY_SOURCE": "files"}
    for name, text in (
        ("CERTIFICATE", certificate.chain_pem),
        ("KEY", certificate.key_pem),
        ("ROOTS", certificate.roots_pem),
    ):
        path = directory / name
        path.write_bytes(text)
        named[f"ZTUNNEL_{name}_FILE"] = str(path)
    return named


@pytest.mark.parametrize(
    ("kind", "variable", "mode"),
    [
        ("spiffe", "SPIFFE_ENDPOINT_SOCKET", DEDICATED),
        ("spire", "SPIRE_ADMIN_SOCKET", DEDICATED),
        ("spire", "SPIRE_ADMIN_SOCKET", {}),
    ],
)
async def test_certificate_may_come_from_an_agent(
    kind: str, variable: str, mode: dict[str, str], root: Authority, tmp_path: Path
) -> None:
    agent, socket = Agent(), tmp_path / "agent.sock"
    agent.change(root.issue(CART))
    async with RpcServer() as server:
        agent.add_to(server)
        await server.start_unix(socket)

        environ = {"ZTUNNEL_IDENTITY_SOURCE": kind, variable: f"unix://{socket}"}
        certificate = await issued(environ | mode, tmp_path)

    assert certificate == agent.certificates[0]
