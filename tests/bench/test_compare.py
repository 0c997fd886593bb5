# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic and parsing, and its programs at work on loopback."""

from __future__ import annotations

import io
import itertools
import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from bench import compare, envoy, gauges, local_state, options, report
from bench.measures import FRESH, MEASURES, POOLED, Measure, Row
from bench.report import Results, Spread
from ztunnel_py.cli.topology import Pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.lane import Lane

BENCH = Path(compare.__file__).parent
RATE = Row("rate", "speed", "Gb/s")
ADDED = Row("p50_us", "added", "µs", 1, is_added=True)


def nothing(_lane: Lane, _seconds: float) -> dict[str, float]:
    return {}


SPEED = Measure("speed", POOLED, nothing, (RATE,))


def test_spread_has_the_middle_value_and_both_ends() -> None:
    found = report.spread([5.0, 1.0, 3.0])

    assert found == Spread(3.0, 1.0, 5.0)


def test_ratio_to_nothing_is_not_shown() -> None:
    assert report.ratio(1.0, 0.0) == ""


def test_added_latency_is_relative_to_the_median_of_the_direct_way() -> None:
    results = Results()
    for direct, ours in ((10.0, 31.0), (12.0, 33.0), (50.0, 40.0)):
        results.add("http", "direct", {"p50_us": direct})
        results.add("http", "ours", {"p50_us": ours})

    found = results.spread("http", "ours", ADDED)

    assert found == Spread(21.0, 19.0, 28.0)


def test_added_latency_without_a_direct_way_is_unknown() -> None:
    results = Results()
    results.add("http", "ours", {"p50_us": 31.0})

    assert results.spread("http", "ours", ADDED) is None


def test_value_that_a_contestant_lacks_is_unknown() -> None:
    results = Results()
    results.add("speed", "direct", {})

    assert results.spread("speed", "direct", RATE) is None


def test_failure_hides_the_repetitions_that_worked() -> None:
    results = Results()
    results.add("speed", "ours", {"rate": 3.0})
    results.fail("speed", "ours", "reset")

    assert results.spread("speed", "ours", RATE) is None


def test_table_shows_ratio_range_and_reason_of_failure() -> None:
    results = Results()
    results.add("speed", "envoy", {"rate": 2.0})
    results.add("speed", "ours", {"rate": 2.5})
    results.add("speed", "ours", {"rate": 3.5})
    results.fail("speed", "other", "connection reset")

    text = "\n".join(report.table(results, [SPEED], ["envoy", "ours", "other"], "envoy"))

    assert "3.00 x1.50" in text
    assert "2.50…3.50" in text
    assert "FAILED speed of other: connection reset" in text


def test_json_has_every_repetition_and_the_ratio() -> None:
    results = Results()
    results.add("speed", "envoy", {"rate": 2.0})
    results.add("speed", "ours", {"rate": 3.0})

    written = report.as_json(results, [SPEED], ["envoy", "ours"], "envoy", {})

    assert written["rows"][0]["contestants"]["ours"]["ratio"] == 1.5
    assert [one["values"] for one in written["repetitions"]] == [
        [{"rate": 2.0}],
        [{"rate": 3.0}],
    ]


def test_memory_is_read_in_bytes() -> None:
    smaps = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  9 kB\nPss:   3 kB\nPss_Anon: 1 kB\n"

    assert gauges.parse_memory(smaps) == (9216, 3072)


def test_accepted_connections_are_read_by_name() -> None:
    snmp = "Ip: A B\nIp: 1 2\nTcp: ActiveOpens PassiveOpens\nTcp: 7 9\n"

    assert gauges.parse_accepted(snmp) == 9


def test_cpu_clock_of_a_process_is_the_one_it_sees_itself() -> None:
    before = time.process_time()

    seen = gauges.cpu_s(os.getpid())

    assert before <= seen <= time.process_time()


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="--only: unknown cat; there are direct, envoy"):
        options.select("cat,envoy", ["direct", "envoy"], "--only")


def test_quick_run_has_no_memory_rows_and_one_phase() -> None:
    chosen = options.parse(["--quick"])

    measures = options.measures_of(chosen)

    assert [one.name for one in measures] == ["bulk-1", "bulk-64", "connect", "pingpong-1"]
    assert (chosen.seconds, chosen.repetitions) == (1.5, 3)


def test_measures_of_one_variant_stand_together() -> None:
    variants = [measure.variant for measure in MEASURES]

    changes = sum(one != other for one, other in itertools.pairwise(variants))

    assert changes == len(set(variants)) - 1
    assert FRESH in variants


def test_state_file_holds_both_pods_and_the_others() -> None:
    pods = tuple(
        Pod(name, name, None, node="n", ipv4=f"10.0.0.{i}")  # type: ignore[arg-type]
        for i, name in enumerate(("client", "server"))
    )
    assert len(pods) == 2
    file = io.StringIO()

    local_state.write(file, pods, 300)

    workloads = yaml.safe_load(file.getvalue())["workloads"]
    assert len(workloads) == 302
    assert workloads[301]["workloadIps"] == ["10.0.0.1"]
    assert workloads[299]["workloadIps"] == ["10.128.1.43"]


def test_envoy_marks_what_it_dials_and_accepts_one_identity() -> None:
    identity = envoy.Identity("chain", "key", "roots", accepts="spiffe://td/ns/a/sa/b")

    text = json.dumps(
        [envoy.outbound(identity, ("10.0.0.1", 15008), "log", 1), envoy.inbound(identity, "l")]
    )

    assert text.count('"int_value": 1337') == 2
    assert text.count('"exact": "spiffe://td/ns/a/sa/b"') == 2
    assert '"max_requests_per_connection": 1' in text


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    subprocess.run(["make", "--silent", "-C", str(BENCH), f"OUT={folder}"], check=True)
    return folder


@pytest.fixture(scope="module")
def ports(programs: Path) -> Iterator[dict[str, str]]:
    """A sink's ports by mode."""
    found = dict(zip(("discard", "echo", "once", "http"), free_ports(4), strict=True))
    sink = subprocess.Popen(
        [str(programs / "sink"), *(f"{port}:{mode}" for mode, port in found.items())]
    )
    try:
        for port in found.values():
            await_listener(int(port))
        yield found
    finally:
        sink.kill()
        sink.wait()


def free_ports(n: int) -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [str(sock.getsockname()[1]) for sock in sockets]


def await_listener(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the sink does not listen"
            time.sleep(0.01)
        else:
            return


@pytest.mark.parametrize(
    ("kind", "mode", "arguments", "counted"),
    [
        ("bulk", "discard", ("3", "50"), "bytes"),
        ("connect", "once", ("4", "50"), "connections"),
        ("hold", "echo", ("2", "50"), "connections"),
        ("pingpong", "echo", ("4", "100"), "rounds"),
        ("http", "http", ("4", "50", "200"), "requests"),
    ],
)
def test_generator_prints_what_it_did(
    programs: Path,
    ports: dict[str, str],
    kind: str,
    mode: str,
    arguments: tuple[str, ...],
    counted: str,
) -> None:
    argv = [str(programs / "load"), kind, "127.0.0.1", ports[mode], *arguments]

    done = subprocess.run(argv, capture_output=True, check=True)

    assert json.loads(done.stdout)[counted] > 0


def test_http_generator_sends_every_request_that_was_due(
    programs: Path, ports: dict[str, str]
) -> None:
    argv = [str(programs / "load"), "http", "127.0.0.1", ports["http"], "2", "100", "300"]

    done = subprocess.run(argv, capture_output=True, check=True)

    assert json.loads(done.stdout)["requests"] == 30


def test_generator_that_cannot_connect_says_why(programs: Path) -> None:
    argv = [str(programs / "load"), "bulk", "127.0.0.1", *free_ports(1), "1", "50"]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "Connection refused" in done.stderr
