# SPDX-License-Identifier: Apache-2.0
"""Life of an inbound stream and of a plaintext connection, in flow order.

HBONE (15008)
1. TLS: the client must prove an identity of our trust domain
2. HTTP/2: each CONNECT stream is a connection of its own
3. the verdict: is this address ours, may this identity go there
4. the application is dialled, from the client's own address where the kernel lets us
5. 200, and only now; then relayed until both directions are over

Plaintext (15006): the same without 1, 2 and 5, and without an identity.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

from ztunnel_py.clock import within
from ztunnel_py.dataplane.abc import Direction, QuestionKind, Role
from ztunnel_py.decide.key import InboundKey, PassthroughKey
from ztunnel_py.decide.verdict import Action
from ztunnel_py.errors import Reason
from ztunnel_py.reference import proxy_protocol
from ztunnel_py.reference import sock as sockets
from ztunnel_py.reference import trace as traces
from ztunnel_py.reference.conn import Conn, EndedError
from ztunnel_py.reference.io import SocketIo
from ztunnel_py.reference.outbound import tls_text
from ztunnel_py.reference.relay import Relay, os_error_text
from ztunnel_py.reference.revocation import RevokedError
from ztunnel_py.reference.session import baggage_of
from ztunnel_py.reference.stream import RESET_EARLY
from ztunnel_py.reference.tls import IdentityMismatchError, Tls
from ztunnel_py.reference.tunnel import Tunnel

if TYPE_CHECKING:
    from ztunnel_py.decide.verdict import Hop, Verdict
    from ztunnel_py.reference.engine import ReferenceEngine
    from ztunnel_py.reference.io import Io
    from ztunnel_py.reference.local import Local
    from ztunnel_py.reference.stream import Stream
    from ztunnel_py.state.address import SockAddr


async def establish(engine: ReferenceEngine, local: Local, conn: Conn) -> Tunnel:
    """Accepts an HBONE connection; its streams are served from then on.

    `conn` stands for the handshake; raises `EndedError` if that fails.
    """
    settings = engine.settings
    contexts = await engine.contexts(local, Reason.SIGNING)
    local_address = conn.original_dst
    tunnel = Tunnel(
        Tls(contexts.server, engine.revocation, is_client=False),
        lambda tls: tls.check_client(contexts.identity),
        settings,
        engine.clock,
        engine.scratch,
        is_client=False,
    )
    engine.remember(tunnel)
    tunnel.on_stream = lambda stream: _accept_stream(
        engine, local, tunnel, stream, conn.src, local_address
    )
    await tunnel.attach(conn.take_sock())
    try:
        await within(engine.clock, settings.handshake_timeout_s, tunnel.established)
    except TimeoutError as error:
        tunnel.abort()
        limit = f"{settings.handshake_timeout_s:g} s"
        raise EndedError(Reason.TLS_HANDSHAKE, f"not complete within {limit}") from error
    except (ssl.SSLError, IdentityMismatchError, RevokedError) as error:
        raise EndedError(Reason.TLS_HANDSHAKE, tls_text(error)) from error
    except OSError as error:
        raise EndedError(Reason.TLS_HANDSHAKE, "the client hung up") from error
    except BaseException:
        tunnel.abort()
        raise
    engine.track_tunnel(local, tunnel, conn.src)
    return tunnel


def _accept_stream(
    engine: ReferenceEngine,
    local: Local,
    tunnel: Tunnel,
    stream: Stream,
    src: SockAddr,
    local_address: SockAddr,
) -> None:
    conn = Conn(engine, local.id, Direction.INBOUND, src, local_address)
    stream.kill = conn.kill
    engine.run(local, conn, _serve_stream(engine, local, conn, tunnel, stream), stream.close)


async def _serve_stream(
    engine: ReferenceEngine, local: Local, conn: Conn, tunnel: Tunnel, stream: Stream
) -> tuple[Reason, str]:
    try:
        return await _forward(engine, local, conn, tunnel, stream)
    except EndedError as error:
        # What happened is on record before the client can know.
        conn.closed(error.reason, error.detail)
        stream.respond(error.reason.status, [])
        raise


async def _forward(
    engine: ReferenceEngine, local: Local, conn: Conn, tunnel: Tunnel, stream: Stream
) -> tuple[Reason, str]:
    headers = dict(reversed(stream.headers))  # the first of several counts
    conn.trace = traces.parsed(headers.get("traceparent", "")) or conn.trace
    if headers[":method"] != "CONNECT":
        raise EndedError(Reason.BAD_METHOD, headers[":method"])
    authority = headers.get(":authority", "")
    key = InboundKey(
        workload=local.id,
        local=conn.original_dst.ip,
        src=conn.src.ip,
        identity=tunnel.identity,
        authority=authority,
        forwarded_host=forwarded_host(headers.get("forwarded", "")),
        network=headers.get("x-forwarded-network"),
        baggage=baggage_of(stream.headers),
    )
    conn.key, conn.hbone_addr = key, authority
    verdict = await engine.ask(QuestionKind.INBOUND, local.id, key)
    hop = _admit(engine, conn, verdict)
    app = await _dial(engine, local, conn, hop, Role.INBOUND)
    if not stream.respond(200, list(verdict.headers)):
        app.close()
        raise EndedError(Reason.H2, RESET_EARLY)
    if verdict.preface is not None:
        app.write(proxy_protocol.header(conn.src, verdict.preface.target, tunnel.identity))
    return await Relay(stream, app, conn.count_upstream, conn.count_downstream).run()


async def serve_passthrough(
    engine: ReferenceEngine, local: Local, conn: Conn
) -> tuple[Reason, str]:
    """Serves one plaintext connection to its end."""
    key = PassthroughKey(local.id, conn.src.ip, conn.original_dst)
    conn.key = key
    verdict = await engine.ask(QuestionKind.PASSTHROUGH, local.id, key)
    hop = _admit(engine, conn, verdict)
    app = await _dial(engine, local, conn, hop, Role.PASSTHROUGH)
    try:
        client = await SocketIo.attach(conn.take_sock(), engine.scratch)
    except BaseException:
        app.close()
        raise
    return await Relay(client, app, conn.count_upstream, conn.count_downstream).run()


def _admit(engine: ReferenceEngine, conn: Conn, verdict: Verdict) -> Hop:
    """Records the connection as the verdict describes it; refuses it if the verdict does."""
    conn.steps.decided_ns = time.monotonic_ns()
    is_forward = verdict.action is Action.FORWARD
    hop = engine.draw(verdict.hops) if is_forward else next(iter(verdict.hops), None)
    if hop is not None:
        conn.app = hop.address
        conn.opened(verdict, hop, conn.original_dst)
    if not is_forward or hop is None:
        raise EndedError(verdict.reason, verdict.detail)
    return hop


async def _dial(engine: ReferenceEngine, local: Local, conn: Conn, hop: Hop, role: Role) -> Io:
    settings = engine.settings
    source = conn.src if hop.keep_source and local.is_transparent(role) else None
    try:
        sock = await sockets.dial(
            hop.address,
            settings.sockets,
            engine.clock,
            settings.connect_timeout_s,
            source,
            netns=local.netns,
            is_busy=engine.churn.is_busy(conn.src.ip, hop.address),
        )
    except OSError as error:
        raise EndedError(Reason.APP_CONNECT, os_error_text(error)) from error
    engine.churn.count(conn.src.ip, hop.address)
    conn.steps.connected_ns = time.monotonic_ns()
    return await SocketIo.attach(sock, engine.scratch)


def forwarded_host(header: str) -> str:
    """The host of a `forwarded` header, unquoted; empty if there is none to be had."""
    if not header.isascii():
        return ""
    for part in header.split(";"):
        name, equals, value = part.strip().partition("=")
        if name == "host" and equals:
            return value.removeprefix('"').removesuffix('"')
    return ""
