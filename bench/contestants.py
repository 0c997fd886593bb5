# SPDX-License-Identifier: Apache-2.0
"""Who is compared, and how its two proxies are started."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench import debian, envoy, local_state, sources
from bench.lane import IDLE_TUNNEL_S, PROGRAMS, Launch, Pair
from ztunnel_py.identity import fake
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.lane import Lane, Variant
    from ztunnel_py.cli.topology import Pod

OUR_ENGINES = ("native", "reference")
ON_DEBIAN_13 = "native-3.5"
BY_NAME_ONLY = frozenset({"reference"})
"""Compared only if asked for: slow, and not what is to be judged."""
TRUST_DOMAIN = "cluster.local"
CERTIFICATE_TTL_S = 86400.0
_OURS = ("-m", "ztunnel_py", "proxy", "ztunnel")


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

    @property
    def engine(self) -> str:
        """Which of our engines it is; empty for what is not ours."""

    def pair(self, lane: Lane, variant: Variant) -> Pair | None:
        """How to start its proxies in that lane; None if it has none."""


@dataclass(frozen=True, slots=True)
class Direct:
    """No proxy and no rules."""

    name: str = "direct"
    has_proxies: bool = False
    reads_state: bool = False
    engine: str = ""

    def pair(self, _lane: Lane, _variant: Variant) -> None:
        """Nothing to start."""


@dataclass(frozen=True, slots=True)
class Relays:
    """Two bare relays without TLS: the limit."""

    name: str = "relay"
    has_proxies: bool = True
    reads_state: bool = False
    engine: str = ""

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
    engine: str = ""

    def pair(self, lane: Lane, variant: Variant) -> Pair:
        """Writes both configurations; Envoy comes as a Python package."""
        client, server = self._identities(lane)
        streams = 0 if variant.shares_tunnels else 1
        log = str(lane.log(lane.client)) + ".access"
        to = (lane.server.ipv4, envoy.HBONE_PORT)
        outbound = envoy.outbound(client, to, log, streams)
        inbound = envoy.inbound(server, str(lane.log(lane.server)) + ".access")
        return Pair(
            self._launch(lane, "outbound", outbound), self._launch(lane, "inbound", inbound)
        )

    def _launch(self, lane: Lane, side: str, config: envoy.Json) -> Launch:
        path = lane.folder / f"{lane.name}-{side}.json"
        path.write_text(json.dumps(config))
        return Launch(envoy.command(path, lane.cores.workers))

    def _identities(self, lane: Lane) -> tuple[envoy.Identity, envoy.Identity]:
        environ = {"XDG_RUNTIME_DIR": str(lane.folder)}
        ca = fake.FakeCa(fake.root(environ=environ), CERTIFICATE_TTL_S)
        pods = (lane.client, lane.server)
        names = [Identity(TRUST_DOMAIN, local_state.NAMESPACE, pod.name) for pod in pods]
        identities = []
        for own, other in (names, names[::-1]):
            identity = envoy.Identity.under(lane.folder / own.service_account, str(other))
            identity.write(asyncio.run(ca.issue(own)))
            identities.append(identity)
        return identities[0], identities[1]


@dataclass(frozen=True, slots=True)
class Ztunnels:
    """Two programs that take ztunnel's environment and state file."""

    name: str
    argv: Sequence[str]
    engine: str = ""
    is_on_debian_13: bool = False
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
        argv = debian.inside(lane.folder, self.argv) if self.is_on_debian_13 else self.argv
        return Launch(argv, env)


def ours(engine: str) -> Ztunnels:
    """This proxy with one of its engines, as `bench.sources` has built it."""
    return Ztunnels(engine, ("env", "-C", str(sources.RELEASE), sys.executable, *_OURS), engine)


def ours_on_debian_13(engine: str = "native") -> Ztunnels:
    """The same in the root folder that `bench.debian` makes."""
    return Ztunnels(ON_DEBIAN_13, (debian.PYTHON, *_OURS), engine, is_on_debian_13=True)


def foreign(name: str, path: Path) -> Ztunnels:
    """Another program that takes ztunnel's environment."""
    return Ztunnels(name, (str(path), "proxy", "ztunnel"))
