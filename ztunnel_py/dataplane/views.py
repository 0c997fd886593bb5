# SPDX-License-Identifier: Apache-2.0
"""Records and views of the C core, with the names that the contract gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from ztunnel_py.dataplane.abc import (
    ConnView,
    Record,
    RecordKind,
    Steps,
    TunnelView,
)
from ztunnel_py.dataplane.packing import (
    DIRECTIONS,
    NOWHERE,
    PROTOCOLS,
    QUESTION_KINDS,
    unpack_address,
    unpack_key,
    unpack_known,
)
from ztunnel_py.decide.key import InboundKey, PassthroughKey
from ztunnel_py.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ztunnel_py.core._core import _ConnView, _Record, _TunnelView
    from ztunnel_py.dataplane.abc import RecordLog
    from ztunnel_py.decide.verdict import Verdict

_KINDS = RecordKind.OPENED, RecordKind.CLOSED, RecordKind.DENIED
_CLOSED = _KINDS.index(RecordKind.CLOSED)
_OK = Reason.OK.number
_REASONS = {reason.number: reason for reason in Reason}
_NAMES = tuple(protocol.value for protocol in PROTOCOLS)
_REUSED = {-1: None, 0: False, 1: True}
_NS = 1e9


def read_record(raw: _Record, names: Mapping[int, str]) -> Record:
    """A record; labels and log fields are those of the hop that its connection took."""
    (
        kind,
        conn,
        workload,
        is_inbound,
        reason,
        hop_index,
        reused,
        src,
        dst,
        original_dst,
        app,
        upstream_bytes,
        downstream_bytes,
        steps,
        tag,
        detail,
        authority,
        protocol,
        trace,
        span,
    ) = raw
    verdict = cast("Verdict | None", tag)
    hop = None if verdict is None or hop_index < 0 else verdict.hops[hop_index]
    return Record(
        _KINDS[kind],
        conn,
        names.get(workload, ""),
        DIRECTIONS[is_inbound],
        unpack_address(src) or NOWHERE,
        unpack_known(dst) or NOWHERE,
        _REASONS[reason],
        detail,
        unpack_known(original_dst),
        authority,
        unpack_known(app),
        upstream_bytes,
        downstream_bytes,
        None if hop is None else hop.log,
        "" if verdict is None else verdict.policy,
        "" if verdict is None else verdict.workload,
        _protocol(is_inbound, authority, protocol) if hop is not None else "",
        _REUSED[reused],
        Steps(*steps),
        trace,
        span,
    )


def write_records(raws: Iterable[_Record], names: Mapping[int, str], log: RecordLog) -> None:
    """Tells a log what happened; ordinary endings, nearly all of them, the short way."""
    is_short = log.begin()
    for raw in raws:
        (
            kind,
            _,
            _,
            is_inbound,
            reason,
            hop_index,
            _,
            src,
            dst,
            _,
            _,
            upstream_bytes,
            downstream_bytes,
            steps,
            tag,
            _,
            authority,
            _,
            trace,
            _,
        ) = raw
        if is_short and kind == _CLOSED and reason == _OK and hop_index >= 0:
            log.closed(
                src,
                dst,
                cast("Verdict", tag).hops[hop_index].log,
                authority,
                is_inbound,
                upstream_bytes,
                downstream_bytes,
                max(0, steps[-1] - steps[0]),
                trace,
            )
        else:
            log.record(read_record(raw, names))
    log.end()


class LiveKeys(Mapping[int, InboundKey | PassthroughKey]):
    """Connection ids and keys of one workload; a key is read when it is looked at.

    There may be very many, and who looks may want to do so in slices.
    """

    def __init__(self, workload: str, raw: Iterable[tuple[int, int, bytes]]) -> None:
        self._workload = workload
        self._raw = {conn: (kind, packed) for conn, kind, packed in raw}

    def __getitem__(self, conn: int) -> InboundKey | PassthroughKey:
        kind, packed = self._raw[conn]
        key = unpack_key(QUESTION_KINDS[kind], self._workload, packed)
        assert isinstance(key, InboundKey | PassthroughKey)
        return key

    def __iter__(self) -> Iterator[int]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def conn_view(raw: _ConnView, names: Mapping[int, str]) -> ConnView:
    """A living connection."""
    (
        number,
        workload,
        is_inbound,
        has_hop,
        protocol,
        src,
        original_dst,
        dst,
        app,
        authority,
        age,
        upstream_bytes,
        downstream_bytes,
        tunnel,
        client_stalled,
        upstream_stalled,
        client_waiting,
        upstream_waiting,
        state,
        trace,
    ) = raw
    return ConnView(
        id=number,
        workload=names.get(workload, ""),
        direction=DIRECTIONS[is_inbound],
        src=unpack_address(src) or NOWHERE,
        original_dst=authority if is_inbound else str(unpack_address(original_dst)),
        actual_dst=unpack_address(app if is_inbound else dst),
        protocol=_protocol(is_inbound, authority, protocol) if has_hop else "",
        age_s=age / _NS,
        upstream_bytes=upstream_bytes,
        downstream_bytes=downstream_bytes,
        trace=trace,
        state=state,
        tunnel=tunnel,
        client_stalled_s=client_stalled / _NS,
        upstream_stalled_s=upstream_stalled / _NS,
        client_waiting=client_waiting,
        upstream_waiting=upstream_waiting,
    )


def tunnel_view(raw: _TunnelView, names: Mapping[int, str]) -> TunnelView:
    """A living HBONE connection."""
    (
        number,
        workload,
        is_inbound,
        is_draining,
        remote,
        identity,
        streams,
        age,
        worker,
        received_bytes,
        sent_bytes,
        stalled,
        unsent_bytes,
        send_window,
        receive_window,
    ) = raw
    return TunnelView(
        id=number,
        workload=names.get(workload, ""),
        direction=DIRECTIONS[is_inbound],
        remote=unpack_address(remote) or NOWHERE,
        identity=identity,
        streams=streams,
        age_s=age / _NS,
        is_draining=is_draining,
        worker=worker,
        received_bytes=received_bytes,
        sent_bytes=sent_bytes,
        stalled_s=stalled / _NS,
        unsent_bytes=unsent_bytes,
        send_window=send_window,
        receive_window=receive_window,
    )


def _protocol(is_inbound: bool, authority: str, number: int) -> str:
    """As the log names it: inbound, by how the client came."""
    if is_inbound:
        return "HBONE" if authority else "TCP"
    return _NAMES[number]
