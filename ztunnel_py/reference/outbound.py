# SPDX-License-Identifier: Apache-2.0
"""Life of an outbound connection, in flow order.

1. accepted on 15001 (or asked for on SOCKS5); nothing is read from it before step 5
2. the verdict: where it goes, as whom, which identities are accepted there
3. plain TCP: dial
4. HBONE: a place on a pooled tunnel, or a new one: dial, TLS, check the server's identity;
   then a CONNECT stream and its 200; double HBONE: the same again inside of that stream, unpooled
5. relayed until both directions are over
"""

from __future__ import annotations

import errno
import http
import ssl
import time
from typing import TYPE_CHECKING

from ztunnel_py.clock import within
from ztunnel_py.dataplane.abc import QuestionKind
from ztunnel_py.decide.key import OutboundKey, RemoteKey
from ztunnel_py.decide.verdict import FORWARDED_NETWORK, Action, HopProtocol
from ztunnel_py.errors import Reason
from ztunnel_py.reference import sock as sockets
from ztunnel_py.reference.conn import EndedError
from ztunnel_py.reference.io import SocketIo
from ztunnel_py.reference.pool import PoolKey
from ztunnel_py.reference.relay import Relay, os_error_text
from ztunnel_py.reference.revocation import RevokedError
from ztunnel_py.reference.session import SessionError, baggage_of
from ztunnel_py.reference.stream_transport import StreamTransport
from ztunnel_py.reference.tls import IdentityMismatchError, Tls
from ztunnel_py.reference.tunnel import Tunnel

if TYPE_CHECKING:
    import socket

    from ztunnel_py.decide.verdict import Hop, Verdict
    from ztunnel_py.identity.spiffe import Identity
    from ztunnel_py.reference.conn import Conn
    from ztunnel_py.reference.engine import ReferenceEngine
    from ztunnel_py.reference.io import Io
    from ztunnel_py.reference.local import Local
    from ztunnel_py.reference.pool import Lease
    from ztunnel_py.reference.session import Headers
    from ztunnel_py.reference.stream import Stream


async def serve(engine: ReferenceEngine, local: Local, conn: Conn) -> tuple[Reason, str]:
    """Serves one connection to its end; raises `EndedError` for an ending before the relay."""
    key = OutboundKey(local.id, conn.src.ip, conn.original_dst)
    verdict = await engine.ask(QuestionKind.OUTBOUND, local.id, key)
    conn.steps.decided_ns = time.monotonic_ns()
    if verdict.action is not Action.FORWARD:
        for hop in verdict.hops:
            conn.opened(verdict, hop, hop.address)
        raise EndedError(verdict.reason, verdict.detail)

    hop = engine.draw(verdict.hops)
    conn.hbone_addr = hop.authority
    if hop.protocol is HopProtocol.DOUBLE_HBONE:
        try:
            return await _serve_double_hbone(engine, local, conn, verdict, hop)
        finally:
            if not conn.is_opened:
                conn.opened(verdict, hop, hop.address)
    conn.opened(verdict, hop, hop.address)
    if hop.protocol is HopProtocol.TCP:
        return await _serve_tcp(engine, local, conn, hop)
    return await _serve_hbone(engine, local, conn, verdict, hop)


async def _serve_tcp(
    engine: ReferenceEngine, local: Local, conn: Conn, hop: Hop
) -> tuple[Reason, str]:
    try:
        sock = await _dial(engine, local, hop)
    except OSError as error:
        raise EndedError(Reason.IO, os_error_text(error)) from error
    upstream = await SocketIo.attach(sock, engine.scratch)
    return await _relay(engine, conn, upstream)


async def _dial(engine: ReferenceEngine, local: Local, hop: Hop) -> socket.socket:
    settings = engine.settings
    limit = settings.connect_timeout_s
    return await sockets.dial(hop.address, settings.sockets, engine.clock, limit, netns=local.netns)


async def _serve_hbone(
    engine: ReferenceEngine, local: Local, conn: Conn, verdict: Verdict, hop: Hop
) -> tuple[Reason, str]:
    lease, stream = await _connect(engine, local, conn, verdict, hop)
    try:
        return await _relay(engine, conn, stream)
    finally:
        stream.close()
        lease.give_back()


async def _serve_double_hbone(
    engine: ReferenceEngine, local: Local, conn: Conn, verdict: Verdict, hop: Hop
) -> tuple[Reason, str]:
    """The inner tunnel is for this connection alone: the gateway chooses who is behind it."""
    lease, outer = await _connect(engine, local, conn, verdict, hop)
    try:
        contexts = await engine.contexts(local, Reason.IDENTITY)
        tls = Tls(contexts.client, engine.revocation, is_client=True)
        inner = _client_tunnel(engine, tls, hop.inner_sans)
        StreamTransport(outer, inner).start()
        try:
            await _established(engine, inner)
            inner.on_buffered = lease.tunnel.on_buffered
            headers = connect_headers(conn, verdict, hop.inner_authority, is_inner=True)
            stream, response = await _request(engine, inner, conn, headers)
            try:
                identity = next(iter(tls.remote_identities()), None)
                key = RemoteKey(local.id, conn.original_dst, identity, baggage_of(response))
                known = await engine.ask(QuestionKind.REMOTE, local.id, key)
                if known.action is Action.FORWARD:
                    conn.opened(known, known.hops[0], hop.address)
                else:
                    conn.opened(verdict, hop, hop.address)
                return await _relay(engine, conn, stream)
            finally:
                stream.close()
        finally:
            inner.close()
    finally:
        outer.close()
        lease.give_back()


async def _connect(
    engine: ReferenceEngine, local: Local, conn: Conn, verdict: Verdict, hop: Hop
) -> tuple[Lease, Stream]:
    """A CONNECT stream that was answered with 200.

    A pooled tunnel may be going away just as it is chosen. Its stream was not served then, nothing
    of the user's was sent, and a new tunnel is tried once.
    """
    key = PoolKey(hop.sans, hop.address, conn.src.ip)
    while True:
        lease = await local.pool.lease(key, lambda: open_tunnel(engine, local, hop))
        conn.steps.tunnel_ns = time.monotonic_ns()
        conn.tunnel_reused = lease.is_reused
        try:
            headers = connect_headers(conn, verdict, hop.authority)
            stream, _ = await _request(engine, lease.tunnel, conn, headers)
        except SessionError as error:
            is_going = not lease.tunnel.is_usable
            lease.give_back()
            if lease.is_reused and is_going:
                continue
            raise EndedError(Reason.H2, str(error)) from error
        except BaseException:
            lease.give_back()
            raise
        return lease, stream


async def _request(
    engine: ReferenceEngine, tunnel: Tunnel, conn: Conn, headers: Headers
) -> tuple[Stream, Headers]:
    """A CONNECT stream that was answered with 200, and the headers of that response."""
    limit = engine.settings.handshake_timeout_s
    try:
        stream = await within(engine.clock, limit, tunnel.open(headers))
    except TimeoutError as error:
        raise EndedError(Reason.H2, f"no free stream within {limit:g} s") from error
    stream.kill = conn.kill
    try:
        status, response = await within(engine.clock, limit, stream.response)
    except TimeoutError as error:
        stream.close()
        raise EndedError(Reason.H2, f"no response to CONNECT within {limit:g} s") from error
    except BaseException:
        stream.close()
        raise
    if status != http.HTTPStatus.OK:
        stream.close()
        raise EndedError(Reason.BAD_STATUS, status_text(status))
    return stream, response


def connect_headers(
    conn: Conn, verdict: Verdict, authority: str, *, is_inner: bool = False
) -> Headers:
    """The CONNECT request (spec dataplane, section 2.9)."""
    constant = [one for one in verdict.headers if is_inner or one[0] != FORWARDED_NETWORK]
    forwarded = f'for="{conn.src}"'
    if verdict.forwarded_host:
        forwarded += f";host={verdict.forwarded_host}"
    return [
        (":method", "CONNECT"),
        (":authority", authority),
        *constant,
        ("forwarded", forwarded),
        ("traceparent", conn.trace.traceparent),
    ]


def status_text(status: int) -> str:
    """`401 Unauthorized`."""
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} <unknown status code>"


async def open_tunnel(engine: ReferenceEngine, local: Local, hop: Hop) -> Tunnel:
    """Dials the next hop, and believes it only with one of the expected identities."""
    contexts = await engine.contexts(local, Reason.IDENTITY)
    try:
        sock = await _dial(engine, local, hop)
    except OSError as error:
        is_timeout = isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT
        reason = Reason.HBONE_TIMEOUT if is_timeout else Reason.IO
        raise EndedError(reason, os_error_text(error)) from error
    tls = Tls(contexts.client, engine.revocation, is_client=True)
    tunnel = _client_tunnel(engine, tls, hop.sans)
    await tunnel.attach(sock)
    await _established(engine, tunnel)
    engine.track_tunnel(local, tunnel, hop.address)
    return tunnel


def _client_tunnel(engine: ReferenceEngine, tls: Tls, sans: tuple[Identity, ...]) -> Tunnel:
    tunnel = Tunnel(
        tls,
        lambda tls: tls.check_server(sans),
        engine.settings,
        engine.clock,
        engine.scratch,
        is_client=True,
    )
    engine.remember(tunnel)
    return tunnel


async def _established(engine: ReferenceEngine, tunnel: Tunnel) -> None:
    """Waits for TLS, and for the server to be one that is expected."""
    settings = engine.settings
    try:
        await within(engine.clock, settings.handshake_timeout_s, tunnel.established)
    except TimeoutError as error:
        tunnel.abort()
        raise EndedError(Reason.IO, "tls handshake timed out") from error
    except (ssl.SSLError, IdentityMismatchError, RevokedError) as error:
        raise EndedError(Reason.IO, tls_text(error)) from error
    except OSError as error:
        raise EndedError(Reason.IO, os_error_text(error)) from error
    except BaseException:
        tunnel.abort()
        raise


def tls_text(error: Exception) -> str:
    """What the TLS library says, without its file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"invalid peer certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)


async def _relay(engine: ReferenceEngine, conn: Conn, upstream: Io) -> tuple[Reason, str]:
    conn.steps.connected_ns = time.monotonic_ns()
    try:
        client = await SocketIo.attach(conn.take_sock(), engine.scratch)
    except BaseException:
        upstream.close()
        raise
    return await Relay(client, upstream, conn.count_upstream, conn.count_downstream).run()
