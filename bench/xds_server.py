# SPDX-License-Identifier: Apache-2.0
"""The control plane of `bench.xds`, in a process of its own: does what its input says.

Prints its address, then a word for each line of its input, once that is done.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import decide_mesh
from tests.support.istiod.server import Istiod
from tests.xds import build
from ztunnel_py.proto import authorization_pb2 as security
from ztunnel_py.proto import workload_pb2 as wds
from ztunnel_py.xds.session import ADDRESS, AUTHORIZATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.istiod.stream import Stream
    from ztunnel_py.proto.discovery_pb2 import Resource

N_WORKLOADS, N_SERVICES, N_POLICIES = 70_000, 5_000, 1_000
PODS_OF_SERVICE = N_WORKLOADS // N_SERVICES
CHURN_S, CHURN_PER_S, DEBOUNCE_S, REST_S = 30, 1_000, 0.1, 3


async def main(directory: Path) -> None:
    """Serves the streams of one client."""
    istiod = Istiod(most_received=64 << 20)  # as ISTIO_GPRC_MAXRECVMSGSIZE makes it
    await istiod.start()
    (directory / "root-cert.pem").write_bytes(istiod.authority.roots_pem)
    addresses, authorizations = [*workloads(), *services()], list(policies())
    print(istiod.address, flush=True)
    stream = await istiod.stream()
    await stream.opening()
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        match line:
            case "first":
                await stream.push(addresses[0])
                await stream.accepted()
                await stream.push(authorizations[0], type_url=AUTHORIZATION)
                await stream.accepted()
            case "push":
                await stream.push(*addresses)
                await stream.accepted()
                await stream.push(*authorizations, type_url=AUTHORIZATION)
                await stream.accepted()
            case "reconnect":
                stream.end()
                stream = await istiod.stream()
                opening = await stream.opening()
                claimed = sum(len(r.initial_resource_versions) for r in opening.values())
                assert claimed == len(addresses) + len(authorizations), claimed
                for type_url in (ADDRESS, AUTHORIZATION):
                    await stream.push(type_url=type_url)
                    await stream.accepted()
            case "rest":
                await asyncio.sleep(REST_S)
            case "churn":
                await churn(stream)
        print(line, flush=True)
    await istiod.stop()


async def churn(stream: Stream) -> None:
    """Pods come back changed, as istiod collects changes: some at a time."""
    numbers = itertools.cycle(range(N_WORKLOADS))
    batch = round(CHURN_PER_S * DEBOUNCE_S)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for turn in range(round(CHURN_S / DEBOUNCE_S)):
        await asyncio.sleep(begun + turn * DEBOUNCE_S - loop.time())
        changed = [workload(next(numbers), revision=f"v{turn}") for _ in range(batch)]
        await stream.push(*changed)
        await stream.accepted()


def workloads() -> Iterator[Resource]:
    """All pods."""
    return map(workload, range(N_WORKLOADS))


def workload(number: int, revision: str = "v1") -> Resource:
    """A pod with everything that a real one has, an endpoint of its service."""
    message = wds.Address.FromString(decide_mesh.payload(decide_mesh.pod(number, False)))
    message.workload.canonical_revision = revision
    message.workload.services[f"shop/{_host(number // PODS_OF_SERVICE)}"].CopyFrom(_ports())
    payload = message.SerializeToString()
    return build.resource(ADDRESS, message.workload.uid, payload, f"{hash(payload):016x}")


def services() -> Iterator[Resource]:
    """All services, with the preferences of most."""
    for number in range(N_SERVICES):
        vip = wds.NetworkAddress(address=(0x0A60_0000 + number).to_bytes(4, "big"))
        message = wds.Service(
            name=f"web-{number}",
            namespace="shop",
            hostname=_host(number),
            addresses=[vip],
            ports=_ports().ports,
            ip_families="IPV4_ONLY",
            canonical=True,
        )
        payload = wds.Address(service=message).SerializeToString()
        yield build.resource(ADDRESS, f"shop/{message.hostname}", payload, f"{hash(payload):016x}")


def policies() -> Iterator[Resource]:
    """All policies, each of a few rules."""
    for number in range(N_POLICIES):
        match = security.Match(
            principals=[security.StringMatch(exact=f"cluster.local/ns/shop/sa/a-{number}")]
        )
        rules = [security.Rule(clauses=[security.Clause(matches=[match])])] * 5
        yield build.policy(f"p{number}", scope=security.WORKLOAD_SELECTOR, rules=rules)


@functools.cache
def _ports() -> wds.PortList:
    return wds.PortList(ports=[wds.Port(service_port=80, target_port=8080)])


def _host(number: int) -> str:
    return f"web-{number}.shop.svc.cluster.local"


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
