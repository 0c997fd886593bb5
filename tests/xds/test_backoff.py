# SPDX-License-Identifier: Apache-2.0
"""How long to wait after each kind of ending."""

from __future__ import annotations

import pytest

from ztunnel_py.rpc.errors import OpenError, RootsError, RpcError, Status
from ztunnel_py.xds import backoff
from ztunnel_py.xds.backoff import Retry

UNREACHABLE = OpenError(Status.UNAVAILABLE, "refused")


@pytest.mark.spec("state-21")
def test_failed_attempts_wait_twice_as_long_each_time_up_to_a_quarter_minute() -> None:
    pauses, backoff_s = [], backoff.FIRST_S

    for _ in range(13):
        retry = backoff.after(UNREACHABLE, backoff_s)
        pauses.append(retry.pause_s)
        backoff_s = retry.backoff_s

    expected = [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 15, 15, 15]
    assert pauses == pytest.approx(expected)


@pytest.mark.parametrize(
    "error",
    [
        RpcError(Status.UNKNOWN, ""),
        RpcError(Status.CANCELLED, ""),
        RpcError(Status.DEADLINE_EXCEEDED, ""),
        RpcError(Status.UNAVAILABLE, "the transport is closing"),
        RpcError(Status.UNAVAILABLE, "received prior goaway: NO_ERROR"),
    ],
    ids=str,
)
def test_a_passing_end_starts_over_after_a_moment(error: RpcError) -> None:
    assert backoff.after(error, 5.0) == Retry("Reconnect", 0.01, 0.01)


@pytest.mark.parametrize(
    "error",
    [
        RpcError(Status.UNAVAILABLE, "something else"),
        RpcError(Status.INTERNAL, "transport is closing"),
        RpcError(Status.UNAUTHENTICATED, ""),
        RootsError("no roots"),
        ValueError("a response that cannot be read"),
    ],
    ids=str,
)
def test_any_other_error_waits_longer_each_time(error: Exception) -> None:
    assert backoff.after(error, 5.0) == Retry("Error", 10.0, 10.0)


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK], ids=str)
def test_what_was_never_answered_is_a_connection_error_whatever_its_status(status: Status) -> None:
    error = OpenError(status, "received prior goaway")

    assert backoff.after(error, 0.01) == Retry("ConnectionError", 0.02, 0.02)


def test_an_end_in_order_is_followed_by_a_new_stream_at_once() -> None:
    assert backoff.after(None, 5.0) == Retry("Complete", 0.01, 0.0)
