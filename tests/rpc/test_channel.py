# SPDX-License-Identifier: Apache-2.0
"""Calls to a real gRPC server over TLS: who is trusted, what is sent, how calls end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.authority import Authority
from tests.support.rpc import RpcServer, server_certificate
from tests.support.tls import tls_context
from tests.support.wait import DEADLINE_S
from ztunnel_py.config_values import Secret
from ztunnel_py.rpc.address import TcpAddress
from ztunnel_py.rpc.errors import OpenError, RootsError, RpcError, Status
from ztunnel_py.rpc.roots import Roots
from ztunnel_py.rpc.server import Server
from ztunnel_py.rpc.token import Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ztunnel_py.rpc.channel import Channel

SERVICE = "test.Service"
ECHO, CHAT = f"/{SERVICE}/Echo", f"/{SERVICE}/Chat"


class Service:
    """Echoes, and remembers with which metadata it was called."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str | bytes]] = []
        self.fails_with: tuple[grpc.StatusCode, str] | None = None
        self.answer: bytes | None = None

    async def echo(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.fails_with is not None:
            await context.abort(*self.fails_with)
        return self.answer or request

    async def chat(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            if request == b"bye":
                return
            if request == b"fail":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "ab\u00df")
            yield request


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("control plane")


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(root: Authority, service: Service) -> AsyncIterator[RpcServer]:
    async with await served(service, root, "localhost") as started:
        yield started


async def served(service: Service, root: Authority, *names: str) -> RpcServer:
    made = RpcServer(most_bytes=1 << 30).add(
        SERVICE,
        Echo=grpc.unary_unary_rpc_method_handler(service.echo),
        Chat=grpc.stream_stream_rpc_method_handler(service.chat),
    )
    return await made.start(server_certificate(root, *names))


@pytest.fixture
def described(server: RpcServer, root: Authority) -> Server:
    """The server as settings would describe it."""
    return Server(
        address=server.address,
        roots=Roots.decide("XDS_ROOT_CA", root.pem.decode()),
        second_name=None,
        tls12=False,
        token=None,
        headers=(),
    )


@asynccontextmanager
async def opened(server: Server) -> AsyncIterator[Channel]:
    with closing(server.channel()) as channel:
        yield channel


async def echo(server: Server, request: bytes = b"hello") -> bytes:
    """One call on a channel of its own."""
    async with opened(server) as channel:
        return await channel.unary(ECHO, request, DEADLINE_S)


async def test_unary_call_is_answered(described: Server) -> None:
    assert await echo(described, b"") == b""
    assert await echo(described, b"x" * 1_000_000) == b"x" * 1_000_000


async def test_stream_carries_messages_both_ways_and_ends_in_order(described: Server) -> None:
    async with opened(described) as channel, channel.call(CHAT) as call:
        received = []
        for request in (b"one", b"two"):
            await call.send(request)
            received.append(await call.receive())
        await call.send(b"bye")

        assert [*received, await call.receive()] == [b"one", b"two", None]


async def test_calls_share_one_connection(described: Server) -> None:
    async with opened(described) as channel:
        answers = await asyncio.gather(
            *(channel.unary(ECHO, b"%d" % number, DEADLINE_S) for number in range(20))
        )

        assert answers == [b"%d" % number for number in range(20)]
        assert channel._connection is not None
        assert channel._connection.connection.streams_started == 20


async def test_retired_channel_hangs_up_after_its_last_call(described: Server) -> None:
    async with opened(described) as channel:
        async with channel.call(CHAT) as call:
            channel.retire()
            await call.send(b"one")
            assert await call.receive() == b"one"
            assert channel._connection is not None

        assert channel._connection is None


async def test_message_far_over_the_windows_arrives_whole(
    described: Server, service: Service
) -> None:
    service.answer = bytes(20 << 20)

    assert await echo(described) == bytes(20 << 20)


# --- how calls end


async def test_answer_that_comes_while_we_still_send_ends_the_call(described: Server) -> None:
    with pytest.raises(RpcError) as failed:
        await echo(described, bytes(64 << 20))  # far over what the server takes

    assert failed.value.status is Status.RESOURCE_EXHAUSTED


async def test_status_before_an_answer_is_no_open_call(described: Server, service: Service) -> None:
    service.fails_with = grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure"

    with pytest.raises(OpenError, match="request authenticate failure") as failed:
        await echo(described)

    assert failed.value.status is Status.UNAUTHENTICATED


async def test_status_after_an_answer_ends_the_call_with_it(described: Server) -> None:
    async with opened(described) as channel, channel.call(CHAT) as call:
        await call.send(b"one")
        await call.receive()
        await call.send(b"fail")

        with pytest.raises(RpcError) as failed:
            await call.receive()

    assert not isinstance(failed.value, OpenError)
    assert (failed.value.status, failed.value.message) == (Status.UNAVAILABLE, "ab\u00df")


async def test_unknown_method_is_no_open_call(described: Server) -> None:
    async with opened(described) as channel:
        with pytest.raises(OpenError) as failed:
            await channel.unary("/test.Service/None", b"", DEADLINE_S)

    assert failed.value.status is Status.UNIMPLEMENTED


async def test_server_that_goes_ends_calls_and_the_next_one_dials_anew(
    described: Server, server: RpcServer, service: Service, root: Authority
) -> None:
    async with opened(described) as channel:
        async with channel.call(CHAT) as call:
            await call.send(b"one")
            await call.receive()
            await server.stop()
            with pytest.raises(RpcError) as failed:
                await call.receive()
            assert not isinstance(failed.value, OpenError)

        again = RpcServer().add(SERVICE, Echo=grpc.unary_unary_rpc_method_handler(service.echo))
        async with await again.start(server_certificate(root, "localhost"), server.port):
            assert await channel.unary(ECHO, b"back", DEADLINE_S) == b"back"


async def test_closed_call_is_cancelled_at_the_server(described: Server, server: RpcServer) -> None:
    ended = asyncio.Event()

    async def wait(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield request
        finally:
            ended.set()

    server.add("test.Waiting", Wait=grpc.stream_stream_rpc_method_handler(wait))
    async with opened(described) as channel:
        async with channel.call("/test.Waiting/Wait") as call:
            await call.send(b"one")
            await call.receive()

        await asyncio.wait_for(ended.wait(), DEADLINE_S)


async def test_cancelled_task_stays_cancelled(described: Server, server: RpcServer) -> None:
    """Also when the connection is lost in the same moment."""
    async with opened(described) as channel, channel.call(CHAT) as call:
        await call.send(b"one")
        await call.receive()
        waiting = asyncio.ensure_future(call.receive())
        await asyncio.sleep(0)

        waiting.cancel()
        channel.close()

        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_task_that_a_lost_connection_woke_can_still_be_timed_out(
    described: Server,
) -> None:
    async with opened(described) as channel, channel.call(CHAT) as call:
        await call.send(b"one")
        await call.receive()
        asyncio.get_running_loop().call_soon(channel.close)
        with pytest.raises(RpcError):
            await call.receive()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_silence_ends_at_the_deadline(described: Server, server: RpcServer) -> None:
    async def never(_: bytes, __: object) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    server.add("test.Never", Never=grpc.unary_unary_rpc_method_handler(never))
    async with opened(described) as channel:
        with pytest.raises(RpcError, match=r"no answer from https://localhost:\d+ within 0.05 s"):
            await channel.unary("/test.Never/Never", b"", 0.05)


# --- who is connected to


async def test_nobody_there_is_told_with_address_and_cause(described: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = replace(described, address=TcpAddress.parse(f"127.0.0.1:{port}"))

    with pytest.raises(OpenError, match=f"cannot connect to https://127.0.0.1:{port}: .*failed"):
        await echo(gone)


async def test_those_who_wait_for_a_dial_share_its_failure(described: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = TcpAddress.parse(f"127.0.0.1:{listener.getsockname()[1]}")
        accepted = 0

        async def accept() -> None:
            nonlocal accepted
            listener.setblocking(False)
            while True:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                accepted += 1
                connection.close()  # in the middle of the handshake

        accepting = asyncio.ensure_future(accept())
        async with opened(replace(described, address=address)) as channel:
            ended = await asyncio.gather(
                *(channel.unary(ECHO, b"", DEADLINE_S) for _ in range(8)), return_exceptions=True
            )
        accepting.cancel()

    assert all(isinstance(error, OpenError) for error in ended)
    assert accepted == 1


async def test_server_of_another_root_is_refused(described: Server) -> None:
    other = Roots.decide("XDS_ROOT_CA", Authority("other").pem.decode())

    with pytest.raises(OpenError, match="CERTIFICATE_VERIFY_FAILED"):
        await echo(replace(described, roots=other))


async def test_any_certificate_of_the_file_is_an_anchor(described: Server, root: Authority) -> None:
    intermediate = root.intermediate("below")
    async with await served(Service(), intermediate, "localhost") as server:
        roots = Roots.decide("XDS_ROOT_CA", intermediate.pem.decode())
        described = replace(described, address=server.address, roots=roots)

        assert await echo(described) == b"hello"


async def test_server_of_another_name_is_refused(described: Server) -> None:
    numeric = TcpAddress.parse(f"127.0.0.1:{described.address.port}")

    with pytest.raises(OpenError, match="IP address mismatch"):
        await echo(replace(described, address=numeric))


@pytest.mark.parametrize(
    ("names", "is_accepted"),
    [
        (("localhost",), True),
        (("istiod.istio-system.svc",), True),
        (("*.istio-system.svc",), True),
        (("ISTIOD.istio-system.svc",), True),
        (("*.svc",), False),
        (("istiod.istio-system.svc.evil",), False),
        (("elsewhere",), False),
    ],
)
async def test_second_name_is_accepted_as_well(
    names: tuple[str, ...], is_accepted: bool, described: Server, root: Authority
) -> None:
    async with await served(Service(), root, *names) as server:
        described = replace(
            described, address=server.address, second_name="istiod.istio-system.svc"
        )
        if is_accepted:
            assert await echo(described) == b"hello"
        else:
            with pytest.raises(OpenError, match=r"valid neither for localhost nor for istiod\."):
                await echo(described)


async def test_second_name_does_not_replace_the_root(described: Server) -> None:
    other = Roots.decide("XDS_ROOT_CA", Authority("other").pem.decode())

    with pytest.raises(OpenError, match="CERTIFICATE_VERIFY_FAILED"):
        await echo(replace(described, roots=other, second_name="localhost"))


@pytest.mark.parametrize("second_name", [None, "istiod.istio-system.svc"])
@pytest.mark.parametrize(
    ("newest", "tls12", "is_accepted"),
    [
        (ssl.TLSVersion.TLSv1_2, False, False),
        (ssl.TLSVersion.TLSv1_2, True, True),
        (ssl.TLSVersion.TLSv1_3, False, True),
    ],
)
async def test_what_the_server_sees_of_the_handshake(
    newest: ssl.TLSVersion,
    tls12: bool,
    is_accepted: bool,
    second_name: str | None,
    described: Server,
    root: Authority,
) -> None:
    """TLS 1.3 unless 1.2 is allowed, ALPN h2, and always the name of the address."""
    context = tls_context(server_certificate(root, "localhost"), is_server=True)
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    told: list[str | None] = []
    context.sni_callback = lambda _, name, __: told.append(name)
    protocols: list[str | None] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    address = TcpAddress.parse(f"localhost:{server.sockets[0].getsockname()[1]}")
    described = replace(described, address=address, tls12=tls12, second_name=second_name)
    async with server:
        with pytest.raises(OpenError):  # it speaks no HTTP/2
            await echo(described)

    assert protocols == (["h2"] if is_accepted else [])
    assert told == ["localhost"] or not is_accepted


async def test_only_https_is_connected_to(described: Server) -> None:
    plain = replace(described, address=TcpAddress.parse("http://localhost:1"))

    with pytest.raises(OpenError, match="http://localhost:1: only https"):
        await echo(plain)


# --- roots


async def test_roots_of_a_file_are_read_for_each_channel(
    described: Server, root: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "root-cert.pem"
    file.write_bytes(Authority("other").pem)
    described = replace(described, roots=Roots.decide("XDS_ROOT_CA", str(file)))
    with pytest.raises(OpenError):
        await echo(described)

    file.write_bytes(Authority("third").pem + root.pem)

    assert await echo(described) == b"hello"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "no valid certificates"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB", "no valid certificates"),
        (b"\xff\xfe", "no valid certificates"),
        (None, "cannot be read: No such file"),
    ],
)
async def test_file_without_roots_is_named(
    content: bytes | None, error: str, described: Server, tmp_path: Path
) -> None:
    file = tmp_path / "root-cert.pem"
    file.touch()
    described = replace(described, roots=Roots.decide("XDS_ROOT_CA", str(file)))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    with pytest.raises(RootsError, match=rf"^XDS_ROOT_CA \({file}\): {error}"):
        described.channel()


async def test_file_cut_off_after_its_first_root_is_refused(
    described: Server, root: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "root-cert.pem"
    file.write_bytes(root.pem + root.pem[:200])
    described = replace(described, roots=Roots.decide("XDS_ROOT_CA", str(file)))

    with pytest.raises(RootsError, match="no valid certificates"):
        described.channel()


def test_file_of_roots_may_come_after_the_start(tmp_path: Path) -> None:
    late = tmp_path / "late.pem"
    roots = Roots.decide("CA_ROOT_CA", str(late))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    with pytest.raises(RootsError, match=r"late\.pem.* cannot be read: No such file"):
        roots.add_to(context)
    late.write_bytes(Authority("late").pem)
    roots.add_to(context)

    assert len(context.get_ca_certs()) == 1


def test_what_is_neither_file_nor_pem_is_named() -> None:
    with pytest.raises(RootsError, match="was no file when the proxy started"):
        Roots.decide("CA_ROOT_CA", "late.pem").add_to(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def test_roots_of_the_system_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "store.pem"
    file.write_bytes(Authority("system").pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    Roots.decide("CA_ROOT_CA", "SYSTEM").add_to(context)

    assert len(context.get_ca_certs()) == 1


def test_system_without_roots_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))

    with pytest.raises(RootsError, match=r"CA_ROOT_CA \(SYSTEM\): this system has no store"):
        Roots.decide("CA_ROOT_CA", "SYSTEM").add_to(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


# --- token and headers


async def test_token_and_headers_go_with_each_call(
    described: Server, service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    token = Token.decide(Secret(str(file)), "Kubernetes")
    described = replace(described, token=token, headers=(("foo", Secret("bar")),))

    async with opened(described) as channel:
        await channel.unary(ECHO, b"", DEADLINE_S)
        file.write_text("second")
        await channel.unary(ECHO, b"", DEADLINE_S)

    sent = [(m["authorization"], m["clusterid"], m["foo"]) for m in service.metadata]
    assert sent == [("Bearer first", "Kubernetes", "bar"), ("Bearer second", "Kubernetes", "bar")]


async def test_token_itself_may_be_given(described: Server, service: Service) -> None:
    described = replace(described, token=Token.decide(Secret("x" * 5000), "c"))

    await echo(described)

    assert service.metadata[0]["authorization"] == "Bearer " + "x" * 5000


async def test_without_a_token_neither_header_is_sent(described: Server, service: Service) -> None:
    await echo(described)

    assert not {"authorization", "clusterid"} & set(service.metadata[0])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "token file exists, but was empty"),
        (b"token\n", "must not end with a newline"),
        (b"to\xffken", "not printable ASCII"),
        (None, "cannot read the token file .*: No such file"),
    ],
)
async def test_call_without_a_usable_token_is_not_made(
    content: bytes | None, error: str, described: Server, service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("good")
    described = replace(described, token=Token.decide(Secret(str(file)), "c"))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    with pytest.raises(OpenError, match=error) as failed:
        await echo(described)

    assert "good" not in str(failed.value)
    assert not service.metadata


# --- addresses


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("istiod:15012", "istiod", 15012, "https://istiod:15012"),
        ("https://istiod", "istiod", 443, "https://istiod"),
        ("[::1]:15012", "::1", 15012, "https://[::1]:15012"),
        ("HTTP://u:p@istiod:80/path", "istiod", 80, "http://istiod:80"),
    ],
)
def test_address_is_read(text: str, host: str, port: int, shown: str) -> None:
    address = TcpAddress.parse(text)

    assert (address.host, address.port, str(address)) == (host, port, shown)


@pytest.mark.parametrize("text", ["", "https://", ":15012", "istiod:x"])
def test_address_without_host_or_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        TcpAddress.parse(text)
