# SPDX-License-Identifier: Apache-2.0
"""A node of a mesh: its authority over TLS, its manager of certificates, an engine with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.authority import Authority
from tests.support.clock import FakeClock
from tests.support.engines import make_engine
from tests.support.istio_ca import TOKEN, IstioCa
from tests.support.rpc import RpcServer, server_certificate
from tests.support.wait import until
from ztunnel_py.config_values import Secret
from ztunnel_py.dataplane.abc import EngineSettings, ListenAddress, Role, WorkloadSpec
from ztunnel_py.dataplane.certificates import Certificates
from ztunnel_py.dataplane.upcalls import Upcalls
from ztunnel_py.decide.settings import Settings
from ztunnel_py.dns.on_demand import OnDemandDns
from ztunnel_py.dns.resolver import Resolver
from ztunnel_py.identity.istiod import Istiod
from ztunnel_py.identity.manager import SecretManager
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.rpc.roots import Roots
from ztunnel_py.rpc.server import Server
from ztunnel_py.rpc.token import Token
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.net import Net
    from tests.support.wire import Wire
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.manager import CertificateStatus

CART = Identity("cluster.local", "shop", "cart")
PRICES = Identity("cluster.local", "shop", "prices")
LIFE = 86400.0
"""Of a certificate, in seconds."""
STATE = """
workloads:
  - {uid: "c//Pod/shop/cart-0", name: cart-0, namespace: shop, serviceAccount: cart,
     trustDomain: cluster.local, workloadIps: ["127.0.0.1"], protocol: HBONE, services: {}}
  - {uid: "c//Pod/shop/prices-0", name: prices-0, namespace: shop, serviceAccount: prices,
     trustDomain: cluster.local, workloadIps: ["127.0.0.2"], protocol: HBONE, services: {}}
"""


class Node:
    """The authority, its client, and what the client's certificates are kept in."""

    def __init__(self, directory: Path) -> None:
        self.root = Authority("mesh")
        self.ca = IstioCa(self.root)
        self.server = RpcServer()
        self.token, self.roots = directory / "token", directory / "root-cert.pem"
        self.token.write_text(TOKEN)
        self.roots.write_bytes(self.root.pem)
        self.clock, self.tasks = FakeClock(), Tasks()

    async def start(self) -> None:
        """The authority is there, and known."""
        await self.serve(0)
        self.istiod = Istiod(self._described(), ttl_s=LIFE, impersonates=True, answer_s=0.2)
        self.manager = SecretManager(self.istiod, self.clock, self.tasks)

    async def serve(self, port: int) -> None:
        self.server = RpcServer()
        self.ca.add_to(self.server.grpc)
        await self.server.start(server_certificate(self.root, "localhost"), port)

    def _described(self) -> Server:
        return Server(
            address=self.server.address,
            roots=Roots.decide("CA_ROOT_CA", str(self.roots)),
            second_name=None,
            tls12=False,
            token=Token.decide(Secret(str(self.token)), "Kubernetes"),
            headers=(),
        )

    async def stop(self) -> None:
        self.manager.stop()
        await self.tasks.stop()
        self.istiod.stop()
        await self.server.stop()

    def status(self) -> CertificateStatus:
        (status,) = self.manager.statuses()
        return status

    def chain(self) -> bytes:
        certificate = self.status().certificate
        return certificate.chain_pem if certificate else b""

    async def tried(self, seconds: float) -> None:
        """Time passes, and at least one fetch has failed since."""
        before = self.status().n_failures
        self.clock.advance(seconds)
        await until(lambda: self.status().n_failures > before, "a failed fetch")

    async def recovered(self, old: bytes) -> None:
        """Time passes until there is another certificate."""

        def is_new() -> bool:
            self.clock.advance(1)
            return self.chain() not in (old, b"")

        await until(is_new, "a new certificate")


class Served:
    """An engine that serves the cart with certificates of the node's authority."""

    def __init__(self, engine: str, node: Node, net: Net, state: str = STATE) -> None:
        self.node, self.net = node, net
        self.plane = make_engine(engine, node.clock)
        self.store = Store()
        self.store.apply(local.load("", state).updates)
        certificates = Certificates(self.plane, node.manager)
        names = OnDemandDns(Resolver)
        self.upcalls = Upcalls(
            self.plane, self.store, Settings(), certificates, names, node.clock, node.tasks
        )
        self.upcalls.serve("cart", WorkloadInfo("cart-0", "shop", "cart"))
        self.plane.start(EngineSettings())
        listener = ListenAddress(Role.INBOUND, "127.0.0.1", 0)
        self.port = self.plane.workload_add(WorkloadSpec("cart", (listener,)))[Role.INBOUND]
        self.upcalls.start()
        self.plane.workload_serve("cart")

    async def tunnel(self) -> Wire:
        """A new tunnel of the prices, which the engine has taken."""
        tunnel = await self.raw_tunnel(self.node.root.issue(PRICES))
        tunnel.greet()
        await tunnel.fence()
        return tunnel

    async def raw_tunnel(self, certificate: WorkloadCertificate) -> Wire:
        """A tunnel of the prices after its own side of the handshake."""
        return await self.net.raw_tunnel(self.port, certificate, source="127.0.0.2")

    async def call(self, tunnel: Wire, port: int) -> int:
        """How a new connection to the cart's application is answered."""
        return await tunnel.status(tunnel.connect(authority=f"127.0.0.1:{port}"))

    async def stop(self) -> None:
        self.upcalls.stop()
        await self.plane.stop()
