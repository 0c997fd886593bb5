# SPDX-License-Identifier: Apache-2.0
"""Times the DNS proxy over loopback: `python -m bench.dns`, under a minute.

Answers per second and CPU second of the server, which has a process of its own; and how long one
client waits that asks one query after the other. Known names come from a mesh of 10,000 services:
asked again and again, and each for the first time.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import socket
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import dns.message
import uvloop

from tests.state.build import pod, service
from ztunnel_py.clock import LoopClock
from ztunnel_py.dns import answer, names
from ztunnel_py.dns.counts import Counts
from ztunnel_py.dns.forward import Forwarder
from ztunnel_py.dns.proxy import DnsProxy
from ztunnel_py.dns.resolv_conf import ResolvConf
from ztunnel_py.dns.server import Server
from ztunnel_py.dns.sockets import Sockets
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

HOST = "127.0.0.1"
N_SERVICES, N_QUERIES, IN_FLIGHT = 10_000, 40_000, 16
INFO = WorkloadInfo("client", "default", "client")


class Rate(NamedTuple):
    """What came of a run."""

    answers: int
    wall_s: float
    cpu_s: float
    """Of the server."""


def main() -> None:
    """Prints the table."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    again = [_query("s1.default")]
    first = [_query(f"s{i % N_SERVICES}.default", i) for i in range(N_QUERIES // 2)]
    for text, queries, n in (("kept", again, N_QUERIES), ("not kept", first, len(first))):
        rate = _flood(ours, port, queries, n)
        print(
            f"{text:<10} {rate.answers / rate.wall_s:>9,.0f} answers/s "
            f"{rate.answers / rate.cpu_s:>9,.0f} per CPU second of the server"
        )
    waits = _one_by_one(port, again[0], 5000)
    p50, p99 = statistics.median(waits), statistics.quantiles(waits, n=100)[98]
    print(f"one client: {p50 * 1e6:.0f} µs median, {p99 * 1e6:.0f} µs 99th percentile")
    server.kill()


def _query(name: str, id_: int = 1) -> bytes:
    query = dns.message.make_query(name, "A")
    query.id = id_ % 65_536
    return query.to_wire()


def _flood(control: Connection, port: int, queries: list[bytes], n: int) -> Rate:
    """Asks with so many queries under way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((HOST, port))
        control.send("cpu")
        begun, cpu = time.perf_counter(), control.recv()
        for i in range(IN_FLIGHT):
            sock.send(queries[i % len(queries)])
        for i in range(IN_FLIGHT, n + IN_FLIGHT):
            sock.recv(4096)
            if i < n:
                sock.send(queries[i % len(queries)])
        wall_s = time.perf_counter() - begun
    control.send("cpu")
    return Rate(n, wall_s, control.recv() - cpu)


def _one_by_one(port: int, query: bytes, n: int) -> list[float]:
    """How long each of so many queries took."""
    waits = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((HOST, port))
        for _ in range(n):
            begun = time.perf_counter()
            sock.send(query)
            sock.recv(4096)
            waits.append(time.perf_counter() - begun)
    return waits


def _serve(control: Connection) -> None:
    uvloop.run(_answer(control))


async def _answer(control: Connection) -> None:
    """A server that tells its port, and whenever it is asked how much CPU time it has used."""
    store, tasks, clock = Store(), Tasks(), LoopClock()
    client = pod("client", "10.0.0.1", canonical_name="client", canonical_revision="v1")
    hosts = (f"s{i}.default.svc.cluster.local" for i in range(N_SERVICES))
    vips = (f"/10.96.{i // 256}.{i % 256}" for i in range(N_SERVICES))
    store.apply([client, *map(service, hosts, vips)])
    forwarder = Forwarder(ResolvConf((HOST,)), {}, Sockets(), clock, tasks)
    settings = answer.Settings(names.parse("cluster.local"))
    proxy = DnsProxy(INFO, store, settings, forwarder, Counts(), clock)
    server = Server([(HOST, 0)], Sockets(), proxy, clock, tasks)
    server.serve()
    asked = asyncio.Event()

    def tell() -> None:
        control.recv()
        used = resource.getrusage(resource.RUSAGE_SELF)
        control.send(used.ru_utime + used.ru_stime)

    asyncio.get_running_loop().add_reader(control.fileno(), tell)
    control.send(server.datagrams[0].address[1])
    await asked.wait()


if __name__ == "__main__":
    main()
