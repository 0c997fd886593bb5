# SPDX-License-Identifier: Apache-2.0
"""When to connect again: by how the last stream ended.

Only some endings start the back-off over: a stream that lived long does not.
Source: spec state, section 1.7; ztunnel src/xds/client.rs.
"""

from __future__ import annotations

from typing import NamedTuple

from ztunnel_py.rpc.errors import OpenError, RpcError, Status

FIRST_S = 0.01
MOST_S = 15.0

_PASSING = {Status.UNKNOWN, Status.CANCELLED, Status.DEADLINE_EXCEEDED}
"""How servers and proxies between end streams that they want back."""
_PASSING_TEXTS = "transport is closing", "received prior goaway"


class Retry(NamedTuple):
    """What follows from an ending."""

    reason: str
    """The label of `istio_xds_connection_terminations_total`."""
    backoff_s: float
    pause_s: float
    """How long to wait now."""


def after(ending: Exception | None, backoff_s: float) -> Retry:
    """What to do when a stream has ended, with an error or in order.

    Errors of our own (no usable roots, a response that cannot be read) count like those of the
    server; ztunnel would try again at once, and for ever.
    """
    if ending is None:
        return Retry("Complete", FIRST_S, 0.0)
    if isinstance(ending, RpcError) and not isinstance(ending, OpenError) and _is_passing(ending):
        return Retry("Reconnect", FIRST_S, FIRST_S)
    longer = min(MOST_S, 2 * backoff_s)
    reason = "ConnectionError" if isinstance(ending, OpenError) else "Error"
    return Retry(reason, longer, longer)


def _is_passing(error: RpcError) -> bool:
    if error.status is Status.UNAVAILABLE:
        return any(text in error.message for text in _PASSING_TEXTS)
    return error.status in _PASSING
