# SPDX-License-Identifier: Apache-2.0
"""Times decisions and the state that they rest on: `python -m bench.decide`, under 2 minutes.

One process, no sockets: what a question costs Python once the engine has asked it, what a push
costs, and what a large mesh costs in memory. Memory is measured in processes of their own, with
the whole program imported. Times are of the CPU, so that a busy machine does not count. Ends with
1 if a goal is missed.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import ipaddress
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from bench import decide_mesh, local_state
from ztunnel_py import app
from ztunnel_py.dataplane.labels import Slots
from ztunnel_py.dataplane.packing import HopPacker, pack_verdict
from ztunnel_py.decide import inbound, outbound
from ztunnel_py.decide.key import InboundKey, OutboundKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.store import Store
from ztunnel_py.xds import decode, local
from ztunnel_py.xds.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Update

    T = TypeVar("T")
    Values = dict[str, float]

N_ENDPOINTS, N_OTHERS, N_FEW = 1000, 10_000, 100
N_POLICIES = 10_000
N_MESH, N_FILE = 70_000, 10_000
_SIZE = struct.Struct("<I")
_US, _MS = 1000, 1_000_000


class Row(NamedTuple):
    """One line of the table."""

    text: str
    key: str
    unit: str
    most: float | None = None
    """The goal, if there is one."""


ROWS = (
    Row("outbound, service of 1,000 endpoints: median", "out_p50", "µs", 60),
    Row("  99th percentile", "out_p99", "µs", 200),
    Row("  times that with 100 workloads instead of 10,000", "out_growth", "x", 1.5),
    Row("  after a push of something else", "out_unrelated", "µs", 200),
    Row("  after a push of one of the endpoints", "out_related", "µs"),
    Row("  the first one", "out_first", "µs"),
    Row("  packing the verdict for the core", "out_pack", "µs", 200),
    Row("  packing the first one", "out_pack_first", "µs"),
    Row("inbound, 10,000 policies of other namespaces: median", "in_p50", "µs", 60),
    Row("inbound, 10,000 policies of 10 rules apply: median", "in_apply_p50", "µs", 2000),
    Row("  the first one after a change of a policy", "in_apply_change", "ms"),
    Row("push of 1,000 workloads of one service", "push", "ms", 50),
    Row("  its longest slice", "push_slice", "ms", 5),
    Row("  times that with 4,000", "push_growth", "x", 4.5),
    Row("70,000 workloads from protobuf: resident", "mesh_resident", "MB", 180),
    Row("  peak", "mesh_peak", "MB", 400),
    Row("  until applied", "mesh_s", "s"),
    Row("10,000 workloads from a file: until applied", "file_s", "s", 5),
    Row("70,000 workloads from a file: until applied", "large_file_s", "s", 40),
    Row("  peak", "large_file_peak", "MB", 500),
)


def main(argv: Sequence[str]) -> int:
    """Prints the table, or for a process of its own one line of JSON."""
    if argv and (len(argv) != 2 or argv[0] not in _CHILDREN):
        print((__doc__ or "").split("\n\n")[0].strip(), file=sys.stderr)
        return 2
    if argv:
        print(json.dumps(_CHILDREN[argv[0]](Path(argv[1]))))
        return 0
    values: Values = {}
    for measure in (measure_outbound, measure_inbound, measure_push, measure_memory):
        values |= measure()
        gc.collect()
    is_met = True
    print(f"{'measure':58}{'value':>10} {'':3}{'goal':>8}")
    for row in ROWS:
        value = values[row.key]
        is_missed = row.most is not None and value > row.most
        goal = "" if row.most is None else f"≤ {row.most:g}"
        mark = "  missed" if is_missed else ""
        print(f"{row.text:58}{value:10.{1 if value < 100 else 0}f} {row.unit:3}{goal:>8}{mark}")
        is_met = is_met and not is_missed
    return 0 if is_met else 1


# --- decisions


def measure_outbound() -> Values:
    """A client's connections to a service, and what pushes do to them."""
    store, decide = _client(N_OTHERS)
    verdict, first = _timed(decide)
    assert verdict.action is Action.FORWARD
    assert len(verdict.hops) == N_ENDPOINTS
    packer = HopPacker(Slots(65536).index)
    _, pack_first = _timed(lambda: pack_verdict(verdict, packer))
    decide_few = _client(N_FEW)[1]
    decide_few()
    times, times_few = _in_turns(decide, decide_few)
    packs = _times(lambda: pack_verdict(verdict, packer), 200)
    unrelated = _times(decide, 50, lambda n: store.apply([decide_mesh.pod(50_000 + n, False)]))
    related = _times(decide, 50, lambda n: store.apply([decide_mesh.pod(n, True)]))
    return {
        "out_first": first / _US,
        "out_p50": statistics.median(times) / _US,
        "out_p99": statistics.quantiles(times, n=100)[98] / _US,
        "out_growth": statistics.median(times) / statistics.median(times_few),
        "out_unrelated": statistics.median(unrelated) / _US,
        "out_related": statistics.median(related) / _US,
        "out_pack": statistics.median(packs) / _US,
        "out_pack_first": pack_first / _US,
    }


def _in_turns(
    one: Callable[[], object], other: Callable[[], object]
) -> tuple[list[int], list[int]]:
    times, others = [], []
    for _ in range(20):
        times += _times(one, 200)
        others += _times(other, 200)
    return times, others


def _client(n_others: int) -> tuple[Store, Callable[[], Verdict]]:
    """A mesh of the service and others, and a connection of the last workload to the service."""
    store = Store()
    store.apply([decide_mesh.service(), *decide_mesh.pods(N_ENDPOINTS, n_others)])
    gc.freeze()  # as the program does
    local = decide_mesh.pod(N_ENDPOINTS + n_others - 1, False).workload
    key = OutboundKey("w", local.ips[0], SockAddr(decide_mesh.VIP, decide_mesh.PORT))
    settings = Settings()
    return store, lambda: outbound.decide(store, settings, key, local)


def measure_inbound() -> Values:
    """A request to an endpoint that policies guard, or do not."""
    values: Values = {}
    for name, namespace in (("in", "other"), ("in_apply", decide_mesh.NAMESPACE)):
        store = Store()
        store.apply([decide_mesh.service(), *decide_mesh.pods(N_ENDPOINTS, N_OTHERS)])
        store.apply(decide_mesh.policies(N_POLICIES, namespace))
        decide = _server(store)
        assert decide().action is Action.FORWARD
        values[f"{name}_p50"] = statistics.median(_times(decide, 100)) / _US
        one = next(decide_mesh.policies(1, namespace))
        changed = _times(decide, 5, functools.partial(_apply_again, store, one))
        values[f"{name}_change"] = statistics.median(changed) / _MS
    return values


def _apply_again(store: Store, update: Update, _number: int) -> None:
    store.apply([update])


def _server(store: Store) -> Callable[[], Verdict]:
    """A request to the first endpoint."""
    rulebook, settings = Rulebook(store), Settings()
    local = decide_mesh.pod(0, True).workload
    client = Identity("cluster.local", "shop", "client")
    source = ipaddress.IPv4Address("10.200.0.1")
    key = InboundKey("w", local.ips[0], source, client, f"{local.ips[0]}:8080")
    return lambda: inbound.decide(store, rulebook, settings, key, local)


# --- pushes


def measure_push() -> Values:
    """Pushes of workloads of one service to a mesh of 10,000, from bytes to applied."""
    few, slices = zip(*(_push(1000) for _ in range(5)), strict=True)
    many, _ = zip(*(_push(4000) for _ in range(3)), strict=True)
    return {
        "push": min(few) / _MS,
        "push_slice": min(slices) / _MS,
        "push_growth": min(many) / min(few),
    }


def _push(count: int) -> tuple[int, int]:
    """Nanoseconds in all, and of the longest step that lets nobody in between."""
    store = Store("node-1")
    store.apply([decide_mesh.service(), *decide_mesh.pods(0, N_OTHERS)])
    payloads = [decide_mesh.payload(decide_mesh.pod(20_000 + n, True)) for n in range(count)]
    gc.freeze()

    async def push() -> tuple[int, int]:
        applying = asyncio.ensure_future(Slices(store).apply(map(decode.address, payloads)))
        begin = before = time.process_time_ns()
        longest = 0
        while not applying.done():
            await asyncio.sleep(0)  # a turn of everybody else
            now = time.process_time_ns()
            longest, before = max(longest, now - before), now
        return before - begin, longest

    return asyncio.run(push())


# --- memory


def measure_memory() -> Values:
    """Large meshes in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        mesh, small, large = (Path(folder) / name for name in ("mesh", "small.yaml", "large.yaml"))
        with mesh.open("wb") as packed:
            for pod in decide_mesh.pods(N_ENDPOINTS, N_MESH - N_ENDPOINTS):
                payload = decide_mesh.payload(pod)
                packed.write(_SIZE.pack(len(payload)) + payload)
        for path, count in ((small, N_FILE), (large, N_MESH)):
            with path.open("w") as text:
                local_state.write_workloads(text, count)
        held, loaded, loaded_large = (
            _child("mesh", mesh),
            _child("file", small),
            _child("file", large),
        )
    return {
        "mesh_resident": held["resident"],
        "mesh_peak": held["peak"],
        "mesh_s": held["s"],
        "file_s": loaded["s"],
        "large_file_s": loaded_large["s"],
        "large_file_peak": loaded_large["peak"],
    }


def _child(name: str, path: Path) -> Values:
    command = [sys.executable, "-m", "bench.decide", name, str(path)]
    found: Values = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def hold_mesh(path: Path) -> Values:
    """Decodes one response of the control plane and keeps what it says."""
    begin = time.process_time()
    store = Store("node-1")
    store.apply([decide_mesh.service()])
    store.apply(_decoded(path.read_bytes()))
    took = time.process_time() - begin
    return _memory() | {"s": took, "count": sum(1 for _ in store.workloads())}


def _decoded(response: bytes) -> Iterator[Update]:
    at = 0
    while at < len(response):
        (size,) = _SIZE.unpack_from(response, at)
        at += _SIZE.size
        yield decode.address(response[at : at + size])
        at += size


def hold_file(path: Path) -> Values:
    """Loads a local state file, as the program does."""
    begin = time.process_time()
    store = Store("node-1")
    store.apply(local.load(str(path)).updates)
    took = time.process_time() - begin
    return _memory() | {"s": took, "count": sum(1 for _ in store.workloads())}


_CHILDREN = {"mesh": hold_mesh, "file": hold_file}


def _memory() -> Values:
    """Megabytes of this process, which is the whole program but for its engine."""
    assert app.__name__ in sys.modules
    gc.collect()
    status = Path("/proc/self/status").read_text()
    fields = {line.partition(":")[0]: line.split() for line in status.splitlines()}
    return {"resident": int(fields["VmRSS"][1]) / 1024, "peak": int(fields["VmHWM"][1]) / 1024}


# --- time


def _timed(act: Callable[[], T]) -> tuple[T, int]:
    begin = time.thread_time_ns()
    result = act()
    return result, time.thread_time_ns() - begin


def _times(
    act: Callable[[], object], count: int, before: Callable[[int], object] | None = None
) -> list[int]:
    """Nanoseconds of each of many calls; `before` is not counted."""
    times = []
    for number in range(count):
        if before is not None:
            before(number)
        times.append(_timed(act)[1])
    return times


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
