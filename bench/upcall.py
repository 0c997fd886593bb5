# SPDX-License-Identifier: Apache-2.0
"""Times one question at a time to the real decisions: `python -m bench.upcall ENGINE COUNT`.

One process on loopback: an engine, 10,000 workloads, and a client that connects to a service
whose only endpoint is an application here. Before each connection the engine forgets its verdicts,
so that each is a miss. The engine itself says when it had accepted and when it had its verdict.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import statistics
import sys
import time
from typing import TYPE_CHECKING

import uvloop

from bench import local_state
from ztunnel_py.clock import LoopClock
from ztunnel_py.dataplane import open_engine
from ztunnel_py.dataplane.abc import EngineSettings, ListenAddress, RecordKind, Role, WorkloadSpec
from ztunnel_py.dataplane.certificates import Certificates
from ztunnel_py.dataplane.upcalls import Upcalls
from ztunnel_py.decide.settings import Settings
from ztunnel_py.dns.on_demand import OnDemandDns
from ztunnel_py.dns.resolver import Resolver
from ztunnel_py.identity import fake
from ztunnel_py.identity.manager import SecretManager
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.dataplane.abc import DataPlane, Record

N_WORKLOADS = 10_000
WARM_UP = 20
CLIENT, SERVICE, SERVER = "127.0.0.1", "127.0.0.2", "127.0.0.3"
WORKLOAD = f"{local_state.NAMESPACE}/client/client"
TTL_S = 86400.0
LONGEST_S = 100.0


def main(argv: Sequence[str]) -> int:
    """Prints one line of JSON."""
    engine, count = argv
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured = asyncio.wait_for(measure(engine, int(count)), LONGEST_S)
        print(json.dumps(runner.run(measured)))
    return 0


async def measure(engine: str, count: int) -> dict[str, float]:
    """Medians and 99th percentiles of `count` connections, in microseconds."""
    tasks, clock = Tasks(), LoopClock()
    plane = open_engine(engine, clock)
    application = socket.create_server((SERVER, 0))
    application.setblocking(False)
    plane.start(EngineSettings())
    spec = WorkloadSpec(WORKLOAD, (ListenAddress(Role.OUTBOUND, "0.0.0.0", 0),))
    port = plane.workload_add(spec)[Role.OUTBOUND].port
    store = Store("")
    store.apply(local.load("", state(port, application.getsockname()[1])).updates)
    manager = SecretManager(fake.FakeCa(fake.root(), TTL_S), clock, tasks)
    certificates = Certificates(plane, manager)
    names = OnDemandDns(Resolver)
    upcalls = Upcalls(plane, store, Settings(), certificates, names, clock, tasks)
    upcalls.serve(WORKLOAD, WorkloadInfo("client", local_state.NAMESPACE, "client"))
    upcalls.start()
    plane.workload_serve(WORKLOAD)
    try:
        times = [await one(plane, application, port) for _ in range(WARM_UP + count)][WARM_UP:]
    finally:
        manager.stop()
        upcalls.stop()
        await plane.stop()
        await tasks.stop()
        application.close()
    decided = [record_us for record_us, _ in times]
    return {
        "p50_us": statistics.median(decided),
        "p99_us": statistics.quantiles(decided, n=100)[98],
        "dial_us": statistics.median(dial_us for _, dial_us in times),
    }


async def one(plane: DataPlane, application: socket.socket, port: int) -> tuple[float, float]:
    """Microseconds from accepted to decided, and from connect to accepted by the application."""
    loop = asyncio.get_running_loop()
    plane.epoch_bump(discovery=True)
    begin = time.monotonic_ns()
    with socket.socket() as client:
        client.setblocking(False)
        client.bind((CLIENT, 0))
        await loop.sock_connect(client, (SERVICE, port))
        arrived, _ = await loop.sock_accept(application)
        dialled = time.monotonic_ns()
        arrived.close()
        await loop.sock_recv(client, 1)
    steps = (await closed(plane)).steps
    assert steps is not None
    return (steps.decided_ns - steps.accepted_ns) / 1000, (dialled - begin) / 1000


async def closed(plane: DataPlane) -> Record:
    """The record of the next connection that has ended."""
    while True:
        for record in plane.recv_records(1):
            if record.kind is RecordKind.CLOSED:
                return record
            if record.kind is RecordKind.DENIED:
                raise SystemExit(f"the connection was refused: {record.reason} {record.detail}")
        await asyncio.sleep(0.0005)


def state(port: int, application: int) -> str:
    """The local state: the client, one service with one endpoint, and many who take no part."""
    text = io.StringIO()
    local_state.write_workloads(text, N_WORKLOADS)
    text.writelines(local_state.workload("client", CLIENT, "node-a"))
    service = f"{local_state.NAMESPACE}/server.{local_state.NAMESPACE}.svc.cluster.local"
    ports = f"{{{port}: {application}}}"
    endpoint = f'{{"{service}": {ports}}}'
    text.writelines(local_state.workload("server", SERVER, "node-b", endpoint, "TCP"))
    hostname = service.partition("/")[2]
    text.write("services:\n- name: server\n")
    text.write(f"  namespace: {local_state.NAMESPACE}\n  hostname: {hostname}\n")
    text.write(f'  vips: ["/{SERVICE}"]\n  ports: {ports}\n')
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
