# SPDX-License-Identifier: Apache-2.0
"""Certificates of many identities at once: `python -m bench.identities [COUNT]`.

An authority that answers at once runs in a process of its own, over TLS on loopback. All identities
are asked for in the same moment, as when a node starts. Printed: how long until the last has its
certificate, how many calls the authority saw, how many there were at a time, how late the loop was
meanwhile, and the CPU time of both sides. The goal, for 1,000: one call each, 8 at a time, 2 s.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from tests.support.authority import Authority
from tests.support.istio_ca import IstioCa
from tests.support.rpc import RpcServer, server_certificate
from ztunnel_py.clock import LoopClock
from ztunnel_py.identity.istiod import Istiod
from ztunnel_py.identity.manager import SecretManager
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.rpc.address import TcpAddress
from ztunnel_py.rpc.roots import Roots
from ztunnel_py.rpc.server import Server
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ztunnel_py.identity.certificates import WorkloadCertificate

COUNT = 1_000
TTL_S = 86400.0
_SERVE = "serve"
_TICK_S = 0.001


def main(argv: Sequence[str]) -> int:
    """Prints one line of JSON."""
    if argv[:1] == [_SERVE]:
        uvloop.run(serve(Path(argv[1])))
        return 0
    count = int(argv[0]) if argv else COUNT
    with tempfile.TemporaryDirectory() as folder:
        roots = Path(folder) / "root-cert.pem"
        command = [sys.executable, "-m", "bench.identities", _SERVE, str(roots)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            measured = uvloop.run(measure(count, port, roots))
            seen, _ = server.communicate()  # it ends with its input
    print(json.dumps(measured | json.loads(seen)))
    return 0


async def serve(roots: Path) -> None:
    """Prints a port, signs there until the input ends, and then prints what it saw."""
    authority = Authority()
    roots.write_bytes(authority.pem)  # noqa: ASYNC240 - nobody waits yet
    ca = IstioCa(authority, tokens=None)
    async with RpcServer() as server:
        ca.add_to(server.grpc)
        await server.start(server_certificate(authority, "localhost"))
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    cpu_s = round(time.process_time(), 2)
    print(json.dumps({"calls": len(ca.asked), "authority_cpu_s": cpu_s}))


class Counted:
    """An authority, and how many calls of it were open at a time."""

    def __init__(self, authority: Istiod) -> None:
        self._authority = authority
        self._open = 0
        self.most = 0

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """As the authority."""
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            return await self._authority.issue(identity)
        finally:
            self._open -= 1


async def measure(count: int, port: int, roots: Path) -> dict[str, float]:
    """Asks for `count` identities at once."""
    tasks = Tasks()
    server = Server(
        address=TcpAddress.parse(f"localhost:{port}"),
        roots=Roots.decide("CA_ROOT_CA", str(roots)),
        second_name=None,
        tls12=False,
        token=None,
        headers=(),
    )
    istiod = Istiod(server, ttl_s=TTL_S, impersonates=True)
    counted = Counted(istiod)
    manager = SecretManager(counted, LoopClock(), tasks)
    late: list[float] = []
    tasks.spawn(watch(late))
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(
        *(manager.get(Identity("cluster.local", "bench", f"{one:05}")) for one in range(count))
    )
    took, used = time.perf_counter() - began, time.process_time() - cpu
    manager.stop()
    await tasks.stop()
    istiod.stop()
    return {
        "identities": count,
        "at_once": counted.most,
        "seconds": round(took, 2),
        "cpu_s": round(used, 2),
        "loop_late_ms_max": round(max(late) * 1e3, 1),
    }


async def watch(late: list[float]) -> None:
    """Notes by how much each wake-up was late, in seconds."""
    while True:
        due = time.perf_counter() + _TICK_S
        await asyncio.sleep(_TICK_S)
        late.append(time.perf_counter() - due)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
