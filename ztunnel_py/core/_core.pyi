# SPDX-License-Identifier: Apache-2.0
"""The calls of core.h; an address is ADDR_PACKED bytes (addr.h), a time nanoseconds."""

from collections.abc import Sequence
from typing import TypeAlias

ALL: int
"""Scope: every workload."""
COLUMNS: int
"""Numbers of one slot: opened, received, sent, closed by flag."""
SLOTS_MAX: int
EVENTS: tuple[str, ...]
KINDS: tuple[str, ...]
OPENSSL: str
NGHTTP2: str

_Address: TypeAlias = bytes

_Record: TypeAlias = tuple[
    int,  # kind
    int,  # connection
    int,  # workload
    bool,  # is inbound
    int,  # reason number
    int,  # index of the hop, -1: none
    int,  # tunnel reused, -1: there is no tunnel
    _Address,  # src
    _Address,  # dst
    _Address,  # original dst
    _Address,  # app
    int,  # upstream bytes
    int,  # downstream bytes
    tuple[int, ...],  # steps
    object,  # tag of the verdict, or None
    str,  # detail
    str,  # authority
    int,  # protocol
    str,  # trace id
    str,  # span id, or empty
]

_ConnView: TypeAlias = tuple[
    int,  # id
    int,  # workload
    bool,  # is inbound
    bool,  # has a hop
    int,  # protocol
    _Address,  # src
    _Address,  # original dst
    _Address,  # dst
    _Address,  # app
    str,  # authority
    int,  # age
    int,  # upstream bytes
    int,  # downstream bytes
    int,  # tunnel
    int,  # client stalled
    int,  # upstream stalled
    int,  # client waiting, bytes
    int,  # upstream waiting, bytes
    str,  # state
    str,  # trace id
]

_TunnelView: TypeAlias = tuple[
    int,  # id
    int,  # workload
    bool,  # is inbound
    bool,  # is draining
    _Address,  # remote
    str,  # identity
    int,  # streams
    int,  # age
    int,  # worker
    int,  # received bytes
    int,  # sent bytes
    int,  # stalled
    int,  # unsent bytes
    int,  # send window
    int,  # receive window
]

class Core:
    """A running core."""

    def __new__(cls, config: dict[str, int], /) -> Core:
        """`config` has all fields of struct core_config.

        Raises:
            OSError: it cannot start.
            ValueError: the TLS library cannot do what is asked for.
        """

    @property
    def idle_fd(self) -> int: ...
    @property
    def question_fd(self) -> int: ...
    @property
    def record_fd(self) -> int: ...

    # --- life

    def stop(self) -> None: ...
    def step_aside(self, /) -> None: ...
    def drain(self, workload: int, is_immediate: bool, /) -> None: ...
    def is_idle(self, workload: int, /) -> bool: ...

    # --- workloads

    def workload_add(
        self, workload: int, netns: int, listeners: Sequence[tuple[int, _Address]], /
    ) -> list[tuple[_Address, bool]]:
        """Binds (role, address) each in a network namespace (-1: ours).

        Returns (bound address, is transparent) each.

        Raises:
            OSError: `filename` is the index of the listener that could not be bound.
        """

    def workload_serve(self, workload: int, /) -> None: ...
    def workload_remove(self, workload: int, /) -> None: ...
    def adopt(self, workload: int, fd: int, src: _Address, dst: _Address, /) -> None: ...

    # --- identity

    def identity_set(self, workload: int, chain: bytes, key: bytes, roots: bytes, /) -> None:
        """Texts are PEM.

        Raises:
            ValueError: the certificate cannot be used.
        """

    def identity_drop(self, workload: int, /) -> None: ...

    # --- revocation

    def revocations_load(self, lists: tuple[bytes, ...], /) -> None:
        """Reads lists, DER, for the next call below; in any thread.

        Raises:
            ValueError: one cannot be read.
        """

    def revocations_apply(self) -> int:
        """Returns how many tunnels it ended."""

    # --- questions

    def recv_questions(self, limit: int, /) -> list[tuple[int, int, int, bytes]]:
        """(id, kind, workload, key)."""

    def reply(self, question: int, verdict: bytes, tag: object, /) -> bool:
        """False if the bytes are malformed, which denies."""

    # --- epochs and live flows

    def epoch(self) -> tuple[int, int]: ...
    def epoch_bump(self, discovery: bool, policy: bool, /) -> None: ...
    def live_keys(self, workload: int, /) -> list[tuple[int, int, bytes]]:
        """(connection, kind, key)."""

    def conn_kill(self, conns: Sequence[int], reason: int, /) -> None: ...

    # --- looking

    def connections(self) -> list[_ConnView]: ...
    def tunnels(self) -> list[_TunnelView]: ...
    def counts(self) -> tuple[int, ...]: ...
    def buffered(self) -> int: ...

    # --- numbers and records

    def slots(self, n: int, /) -> bytes:
        """COLUMNS native 64-bit numbers each."""

    def events(self) -> tuple[int, ...]: ...
    def recv_records(self, limit: int, /) -> list[_Record]: ...
    def report_opened(self, is_wanted: bool, /) -> None: ...

    # --- tests

    def advance(self, ns: int, /) -> None: ...
    def fence(self) -> None: ...
