# SPDX-License-Identifier: Apache-2.0
"""Access-log lines of records."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ztunnel_py.dataplane.abc import Direction, Record, RecordKind, Steps
from ztunnel_py.dataplane.packing import pack_address
from ztunnel_py.dataplane.views import read_record, write_records
from ztunnel_py.decide.verdict import Action, Hop, HopProtocol, LogFields, TrafficLabels, Verdict
from ztunnel_py.errors import Reason
from ztunnel_py.state.address import SockAddr
from ztunnel_py.telemetry import log
from ztunnel_py.telemetry.access_log import AccessLog, log_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.telemetry.conftest import LogFile

_TIME = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+Z")
_OURS = "spiffe://td/ns/shop/sa/cart"
_THEIRS = "spiffe://td/ns/shop/sa/prices"
_LOG = LogFields("cart-1", "shop", _OURS, "c1", "prices.shop", "prices-1", "shop", _THEIRS, "c2")
_TRACE = "0af7651916cd43dd8448eb211c80319c"
_ID = f" connection.id={_TRACE}"
_OPENED = (
    'src.addr=10.1.0.5:40000 src.workload="cart-1" src.namespace="shop" '
    f'src.identity="{_OURS}" src.cluster="c1" '
    "dst.addr=10.1.0.7:15008 dst.hbone_addr=10.1.0.7:8080 "
    'dst.service="prices.shop" dst.workload="prices-1" dst.namespace="shop" '
    f'dst.identity="{_THEIRS}" dst.cluster="c2" '
)


def _record(**changes: Any) -> Record:
    parts: dict[str, Any] = {
        "kind": RecordKind.CLOSED,
        "conn": 0x2A,
        "workload": "w",
        "direction": Direction.OUTBOUND,
        "src": SockAddr.parse("10.1.0.5:40000"),
        "dst": SockAddr.parse("10.1.0.7:15008"),
        "reason": Reason.OK,
        "hbone_addr": "10.1.0.7:8080",
        "upstream_bytes": 11,
        "downstream_bytes": 22,
        "log": _LOG,
        "steps": Steps(1_000_000, 1_250_000, 2_000_000, 0, 14_900_000),
        "trace": _TRACE,
    }
    return Record(**parts | changes)


def _logged(log_file: LogFile, record: Record, filter_text: str = "info") -> list[list[str]]:
    """Columns of each line after the time."""
    log_file.start(filter_text)
    log_record(record)
    return [line.split("\t")[1:] for line in log_file.lines()]


def test_completed_outbound_connection_logs_all_fields_in_order(log_file: LogFile) -> None:
    assert _logged(log_file, _record()) == [
        [
            "info",
            "access",
            "connection complete",
            _OPENED + 'direction="outbound" bytes_sent=11 bytes_recv=22 duration="13ms"' + _ID,
        ]
    ]


def test_inbound_bytes_are_those_of_the_application(log_file: LogFile) -> None:
    ((*_, fields),) = _logged(log_file, _record(direction=Direction.INBOUND))

    ending = 'direction="inbound" bytes_sent=22 bytes_recv=11 duration="13ms"'
    assert fields.endswith(ending + _ID)


def test_failed_connection_is_an_error_with_its_text(log_file: LogFile) -> None:
    record = _record(reason=Reason.POLICY_DENIED, detail="allow policies exist, but none allowed")

    ((level, _, message, fields),) = _logged(log_file, record)

    assert (level, message) == ("error", "connection complete")
    assert fields.endswith(
        'duration="13ms" error="connection closed due to policy rejection: '
        'allow policies exist, but none allowed"' + _ID
    )


def test_early_refusal_is_a_warning_with_addresses_and_error_only(log_file: LogFile) -> None:
    record = _record(
        kind=RecordKind.DENIED, reason=Reason.NO_HEALTHY_UPSTREAM, detail="x", log=None
    )

    assert _logged(log_file, record) == [
        [
            "warn",
            "access",
            "connection failed",
            'src.addr=10.1.0.5:40000 dst.addr=10.1.0.7:15008 direction="outbound" '
            'error="no healthy upstream: x"' + _ID,
        ]
    ]


@pytest.mark.spec("dataplane-112")
@pytest.mark.parametrize(
    ("filter_text", "messages"), [("info", []), ("access=debug", ["connection opened"])]
)
def test_opening_appears_at_debug_only(
    log_file: LogFile, filter_text: str, messages: list[str]
) -> None:
    lines = _logged(log_file, _record(kind=RecordKind.OPENED), filter_text)

    assert [message for _, _, message, _ in lines] == messages


def test_opening_has_no_counts(log_file: LogFile) -> None:
    lines = _logged(log_file, _record(kind=RecordKind.OPENED), "access=debug")

    assert lines == [
        ["debug", "access", "connection opened", _OPENED + 'direction="outbound"' + _ID]
    ]


def test_unknown_fields_are_left_out(log_file: LogFile) -> None:
    ((*_, fields),) = _logged(log_file, _record(log=LogFields(), hbone_addr=""))

    assert fields == (
        'src.addr=10.1.0.5:40000 dst.addr=10.1.0.7:15008 direction="outbound" '
        'bytes_sent=11 bytes_recv=22 duration="13ms"' + _ID
    )


@pytest.mark.spec("dataplane-111")
def test_json_line_has_level_time_scope_message_and_the_fields_in_order(log_file: LogFile) -> None:
    log_file.start(is_json=True)

    log_record(_record(reason=Reason.APP_CONNECT, detail="refused"))

    (line,) = log_file.lines()
    event = json.loads(line)
    source = ["addr", "workload", "namespace", "identity", "cluster"]
    destination = [
        "addr", "hbone_addr", "service", "workload", "namespace", "identity", "cluster"
    ]  # fmt: skip
    assert list(event) == [
        *("level", "time", "scope", "message"),
        *(f"src.{name}" for name in source),
        *(f"dst.{name}" for name in destination),
        *("direction", "bytes_sent", "bytes_recv", "duration", "error", "connection.id"),
    ]
    assert event["scope"] == "access"
    assert (event["src.addr"], event["bytes_sent"]) == ("10.1.0.5:40000", 11)


def test_path_tells_each_step_in_microseconds_since_accept(log_file: LogFile) -> None:
    record = _record(
        original_dst=SockAddr.parse("10.96.0.9:80"),
        workload_name="shop/cart-1",
        protocol="HBONE",
        tunnel_reused=True,
    )

    lines = _logged(log_file, record, "warn,ztunnel::path=debug")

    assert lines == [
        [
            "debug",
            "path",
            "path",
            f'conn="000000000000002a"{_ID} direction="outbound" src=10.1.0.5:40000 '
            'original_dst=10.96.0.9:80 workload="shop/cart-1" '
            f'identity="{_OURS}" peer_identity="{_THEIRS}" protocol="HBONE" '
            'next_hop=10.1.0.7:15008 authority="10.1.0.7:8080" tunnel="reused" '
            'accepted_us=0 decided_us=250 tunnel_us=1000 closed_us=13900 result="ok"',
        ]
    ]


def test_path_of_an_inbound_connection_swaps_identities_and_names_policy_and_application(
    log_file: LogFile,
) -> None:
    record = _record(
        direction=Direction.INBOUND,
        policy="allowed by shop/callers",
        app=SockAddr.parse("10.1.0.7:8080"),
        steps=None,
    )

    ((*_, fields),) = _logged(log_file, record, "warn,ztunnel::path=debug")

    assert fields == (
        f'conn="000000000000002a"{_ID} direction="inbound" src=10.1.0.5:40000 '
        f'identity="{_THEIRS}" peer_identity="{_OURS}" authority="10.1.0.7:8080" '
        'policy="allowed by shop/callers" app=10.1.0.7:8080 result="ok"'
    )


def test_path_of_a_refusal_follows_its_access_line(log_file: LogFile) -> None:
    record = _record(kind=RecordKind.DENIED, reason=Reason.SELF_CALL, log=None, steps=None)

    lines = _logged(log_file, record, "info,ztunnel::path=debug")

    assert [message for _, _, message, _ in lines] == ["connection failed", "path"]
    assert lines[1][3].endswith('result="attempted recursive call to ourselves"')


# --- the short way


_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n\x7f'), max_size=8)
_ADDRESS = st.just(b"\0" * 19) | st.builds(
    lambda ip, port: pack_address(SockAddr(ip, port)), st.ip_addresses(), st.integers(0, 65535)
)
_NUMBER = st.integers(0, 2**64 - 1)
_FIELDS = st.builds(LogFields, *[st.sampled_from(["", "x"]) | _TEXT] * len(LogFields._fields))


def _verdict(log: LogFields) -> Verdict:
    hop = Hop(HopProtocol.TCP, SockAddr.parse("10.0.0.1:1"), TrafficLabels("source"), log)
    return Verdict(Action.FORWARD, hops=(hop,))


_RAW = st.tuples(
    st.sampled_from([1, 1, 1, 0, 2]),
    _NUMBER,
    st.just(1),
    st.booleans(),
    st.sampled_from([0, 0, 0, Reason.APP_CONNECT.number]),
    st.sampled_from([0, 0, -1]),
    st.sampled_from([-1, 0, 1]),
    *[_ADDRESS] * 4,
    _NUMBER,
    _NUMBER,
    st.tuples(*[_NUMBER] * 5),
    st.builds(_verdict, _FIELDS),
    _TEXT,
    st.text(st.characters(max_codepoint=255), max_size=8),
    st.integers(0, 2),
    st.just(_TRACE),
    st.just(""),
)


class Kept:
    """In the place of the log's writer."""

    lines: ClassVar[list[bytes]] = []

    def __init__(self, *_: object) -> None:
        Kept.lines = []

    def put_all(self, lines: Sequence[bytes]) -> int:
        self.lines.extend(lines)
        return len(lines)

    def close(self) -> None:
        pass


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log in memory."""
    monkeypatch.setattr(log, "LineWriter", Kept)
    yield
    log.close()


def _text(filter_text: str, is_json: bool, write: Callable[[], None]) -> list[bytes]:
    log.configure(filter_text, is_json=is_json)
    write()
    return [_TIME.sub(b"", line) for line in Kept.lines]


@given(st.lists(_RAW, max_size=8), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_short_way_writes_what_the_long_one_does(
    kept: None, raws: list[Any], is_json: bool
) -> None:
    def long() -> None:
        for raw in raws:
            log_record(read_record(raw, {}))

    short = _text("info", is_json, lambda: write_records(raws, {}, AccessLog()))

    assert short == _text("info", is_json, long)


@pytest.mark.parametrize(
    "filter_text", ["warn", "access=off", "access[{error}]=info", "info,ztunnel::path=debug"]
)
def test_filters_count_on_the_short_way(kept: None, filter_text: str) -> None:
    steps = (1, 2, 3, 4, 5)
    address = pack_address(SockAddr.parse("10.0.0.1:1"))
    raw: Any = (
        1,
        1,
        1,
        False,
        0,
        0,
        -1,
        *[address] * 4,
        5,
        6,
        steps,
        _verdict(_LOG),
        "",
        "",
        0,
        _TRACE,
        "",
    )

    short = _text(filter_text, False, lambda: write_records([raw, raw], {}, AccessLog()))

    assert short == 2 * _text(filter_text, False, lambda: log_record(read_record(raw, {})))
