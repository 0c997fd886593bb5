# SPDX-License-Identifier: Apache-2.0
"""Why connections end, and the exceptions whose messages are for an operator.

`Reason` is the one table of endings. The C core's `reason.def` is generated from it, so a
name, a status or a text is written once. Texts are those of ztunnel (spec dataplane, section
13), because dashboards and people grep for them; `{}` takes the detail of one connection.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Flag(enum.Enum):
    """The `response_flags` label of a closed connection, in the order of the counter columns."""

    NONE = "-"
    DENY = "DENY"
    CONNECT = "CONNECT"
    TLS_FAILURE = "TLS_FAILURE"
    H2_HANDSHAKE_FAILURE = "H2_HANDSHAKE_FAILURE"
    NETWORK_POLICY = "NETWORK_POLICY"
    IDENTITY_ERROR = "IDENTITY_ERROR"
    CERT_REVOKED = "CERT_REVOKED"


class Reason(enum.Enum):
    """How a connection ended: HTTP status toward an HBONE client, flag, text.

    An *early* reason ends a connection before it has labels: one `connection failed` line, no
    traffic metrics. All others are recorded: opened and closed, a `connection complete` line.
    """

    def __init__(self, number: int, status: int, flag: Flag | None, text: str) -> None:
        self.number = number
        self.status = status
        self.flag = flag or Flag.NONE
        self.text = text
        self.is_early = flag is None

    def describe(self, detail: str = "") -> str:
        """The error text of one connection; empty for `OK`."""
        return self.text.replace("{}", detail)

    # --- number, status, flag (None = early), text
    OK = 0, 200, Flag.NONE, ""
    # Early: refused before anything is known about the connection.
    SELF_CALL = 1, 503, None, "attempted recursive call to ourselves"
    UNKNOWN_WORKLOAD = 2, 503, None, "failed to fetch information about local workload: {}"
    UNKNOWN_WAYPOINT = 3, 503, None, "unknown waypoint: {}"
    UNKNOWN_GATEWAY = 4, 503, None, "unknown network gateway: {}"
    NO_ROUTE = 5, 503, None, "no valid routing destination for workload: {}"
    NO_HEALTHY_UPSTREAM = 6, 503, None, "no healthy upstream: {}"
    NO_SERVICE = 7, 503, None, "no service for target address: {}"
    BAD_METHOD = 8, 400, None, "expected method CONNECT, got {}"
    BAD_AUTHORITY = 9, 400, None, "no valid authority pseudo header: {}"
    IP_MISMATCH = 10, 400, None, "ip mismatch: {}"
    UNKNOWN_HOST = 11, 503, None, "no service or workload for hostname: {}"
    NO_PORT = 12, 503, None, "requested service {} found, but cannot resolve port"
    NO_VIP = 13, 503, None, "requested service {} found, but has no IP addresses"
    TLS_HANDSHAKE = 14, 503, None, "tls handshake error: {}"
    SIGNING = 15, 503, None, "signing error: {}"
    # Early, and ours: the mind did not answer. Fail closed.
    DECISION_TIMEOUT = 16, 503, None, "no decision within {}"
    DECIDER_ERROR = 17, 503, None, "the decision failed; its key and stack are in the log"
    TOO_BUSY = 18, 503, None, "too many {} at once"
    # Recorded.
    POLICY_DENIED = 19, 401, Flag.DENY, "connection closed due to policy rejection: {}"
    POLICY_CHANGED = 20, 401, Flag.DENY, "connection closed due to policy change"
    CERT_REVOKED = (
        21,
        503,
        Flag.CERT_REVOKED,
        "connection closed: peer certificate revoked by CRL",
    )
    APP_CONNECT = 22, 503, Flag.CONNECT, "connection failed: {}"
    HBONE_TIMEOUT = (
        23,
        503,
        Flag.NETWORK_POLICY,
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {}",
    )
    IO = 24, 503, Flag.CONNECT, "io error: {}"
    TLS_CONFIG = 25, 503, Flag.TLS_FAILURE, "tls error: {}"
    IDENTITY = 26, 503, Flag.IDENTITY_ERROR, "identity error: {}"
    H2_START = 27, 503, Flag.H2_HANDSHAKE_FAILURE, "http2 handshake failed: {}"
    H2 = 28, 503, Flag.H2_HANDSHAKE_FAILURE, "h2 failed: {}"
    BAD_STATUS = 29, 503, Flag.CONNECT, "http status: {}"
    POOL_DRAINING = 30, 503, Flag.CONNECT, "pool draining"
    SEND = 31, 503, Flag.CONNECT, "send: {}"
    RECEIVE = 32, 503, Flag.CONNECT, "receive: {}"
    CLOSING = 33, 503, Flag.CONNECT, "while closing connection: {}"
    OVER_BUDGET = 34, 503, Flag.CONNECT, "buffered bytes over the budget of {}"
    DRAINED = 35, 503, Flag.NONE, "connection closed due to connection drain"
    INTERNAL = 36, 503, Flag.CONNECT, "internal error: {}"
    # Early: a workload that has a hostname only.
    LOOKUP_FAILED = 37, 503, None, "no ip addresses were resolved for workload: {}"
    LOOKUP_EMPTY = (
        38,
        503,
        None,
        "ip addresses were resolved for workload {}, but valid dns response had no A/AAAA records",
    )


class StartError(Exception):
    """The program cannot start; the message is for the operator and the exit status is 1."""


class ConfigError(StartError):
    """A setting is wrong; the message names the variable, the value and what is expected."""


class LocalStateError(StartError):
    """The local state is wrong; the message names source, entry and key."""


class LookupFailedError(Exception):
    """DNS does not tell the addresses of a name; the message says why."""


class UnknownNameError(Exception):
    """Nobody in the mesh has that name; the message suggests who has one like it."""

    def __init__(self, what: str, near: Sequence[str] = ()) -> None:
        super().__init__(f"{what}; did you mean {', '.join(near)}?" if near else what)
