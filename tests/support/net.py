# SPDX-License-Identifier: Apache-2.0
"""What surrounds an engine in a test: users, applications, scripted tunnels; closed at its end."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.support import wire
from tests.support.apps import LOOPBACK, App, Tcp
from tests.support.frames import INITIAL_WINDOW
from tests.support.plane import CLIENT, SERVER, forward, through
from tests.support.sockets import has_unanswered_syn
from tests.support.tls import tls_context
from tests.support.wait import until
from tests.support.wire import WireServer
from ztunnel_py.dataplane.abc import Role
from ztunnel_py.state.address import SockAddr

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from tests.support.plane import Plane
    from tests.support.wire import Wire
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity


class Net:
    """Makes the other ends and closes them."""

    def __init__(self, certify: Callable[[Identity], WorkloadCertificate]) -> None:
        self.certify = certify
        self._closing: list[Callable[[], None]] = []
        self._holes: dict[SockAddr, tuple[socket.socket, socket.socket]] = {}

    async def app(
        self, behave: Callable[[Tcp], Awaitable[None]] | None = None, host: str = LOOPBACK
    ) -> App:
        """An application that listens."""
        app = await App(behave).start(host)
        self._closing.append(app.close)
        return app

    async def dial(self, to: SockAddr, source: str | None = None) -> Tcp:
        """A user's connection."""
        tcp = await Tcp.dial(to, source)
        self._closing.append(tcp.close)
        return tcp

    async def user(self, plane: Plane, source: str | None = None) -> Tcp:
        """A user's connection, captured by the outbound listener."""
        return await self.dial(plane.port(Role.OUTBOUND), source)

    async def server(
        self,
        identity: Identity = SERVER,
        settings: Mapping[int, int] | None = None,
        *,
        responds: int | None = 200,
        host: str = LOOPBACK,
        certificate: WorkloadCertificate | None = None,
        trusts_all: bool = False,
        in_crumbs: bool = False,
    ) -> WireServer:
        """A scripted HBONE server, with a certificate of its own or the identity's."""
        given = {} if settings is None else {"settings": settings}
        certificate = certificate or self.certify(identity)
        server = WireServer(
            certificate, responds=responds, trusts_all=trusts_all, in_crumbs=in_crumbs, **given
        )
        await server.start(host)
        self._closing.append(server.close)
        return server

    async def narrow(self, plane: Plane, window: int) -> tuple[Wire, int, Tcp]:
        """A stream whose other end gave a window of so many bytes, and the user behind it."""
        server = await self.server(settings={INITIAL_WINDOW: window})
        plane.decide = lambda _: through(server.address)
        user = await self.user(plane)
        tunnel = await server.tunnel()
        return tunnel, await tunnel.asked(), user

    async def tunnel(
        self,
        plane: Plane,
        identity: Identity = CLIENT,
        *,
        at: SockAddr | None = None,
        source: str | None = None,
        settings: Mapping[int, int] | None = None,
        in_crumbs: bool = False,
    ) -> Wire:
        """A scripted HBONE client's connection that has said its preface and heard the server's."""
        to = at or plane.port(Role.INBOUND)
        certificate = self.certify(identity)
        tunnel = await self.raw_tunnel(to, certificate, source=source, in_crumbs=in_crumbs)
        tunnel.greet(*(() if settings is None else (settings,)))
        await tunnel.fence()
        return tunnel

    async def raw_tunnel(
        self,
        to: SockAddr,
        certificate: WorkloadCertificate | None = None,
        *,
        source: str | None = None,
        context: ssl.SSLContext | None = None,
        in_crumbs: bool = False,
    ) -> Wire:
        """A scripted client's connection after TLS, before anything is said."""
        context = context or tls_context(certificate, is_server=False)
        tunnel = await wire.dial(to, context, source, in_crumbs=in_crumbs)
        self._closing.append(tunnel.hang_up)
        return tunnel

    def hole(self) -> SockAddr:
        """An address that lets connections hang: its queue is full until `open_up`."""
        listener = socket.create_server((LOOPBACK, 0), backlog=0)
        to = SockAddr.of(listener.getsockname())
        plug = socket.create_connection((LOOPBACK, to.port))
        self._holes[to] = listener, plug
        self._closing += [listener.close, plug.close]
        return to

    async def dialling(self, to: SockAddr) -> None:
        """Returns when somebody waits for a connection to `to`."""
        await until(lambda: has_unanswered_syn(to), f"a SYN to {to}")

    def open_up(self, hole: SockAddr) -> None:
        """Makes room; the connections that hang get through at the next retransmission."""
        listener, _ = self._holes[hole]
        listener.accept()[0].close()

    def close(self) -> None:
        """Closes everything that was made."""
        for close in self._closing:
            close()


class Mesh:
    """A client's engine, a server's engine and an application."""

    def __init__(self, client: Plane, server: Plane, net: Net, app: App) -> None:
        self.client = client
        self.server = server
        self.net = net
        self.app = app
        client.decide = lambda _: through(server.port(Role.INBOUND), str(app.address))
        server.decide = lambda _: forward(app.address, reporter="destination")

    async def connect(self, source: str | None = None) -> tuple[Tcp, Tcp]:
        """A connection through both: the user's end, the application's end."""
        user = await self.net.user(self.client, source)
        return user, await self.app.accept()
