# SPDX-License-Identifier: Apache-2.0
"""What happens to one connection: its way, what is decided, and who does what in which order.

Steps name a side: the *near* end is the client, the *far* end the next hop or the application. A
step that its side cannot take (it has ended, or was never reached) does nothing, on every engine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.support.frames import (
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
)

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


class Way(enum.Enum):
    """Through which listener, to what."""

    OUTBOUND_TCP = "user - 15001 - application"
    OUTBOUND_HBONE = "user - 15001 - tunnel"
    INBOUND_HBONE = "tunnel - 15008 - application"
    PLAINTEXT = "user - 15006 - application"

    @property
    def is_near_a_stream(self) -> bool:
        """The client is a scripted tunnel."""
        return self is Way.INBOUND_HBONE

    @property
    def is_far_a_stream(self) -> bool:
        """The next hop is a scripted tunnel."""
        return self is Way.OUTBOUND_HBONE


class Outcome(enum.Enum):
    """What is decided, and what the next hop is like."""

    SERVED = "served"
    WITH_HEADERS = "served, with headers in the verdict"
    WITH_PREFACE = "served, with a PROXY header"
    DENIED_EARLY = "denied early"
    DENIED_BY_POLICY = "denied by policy"
    REFUSED = "next hop refuses"
    HANGS = "next hop hangs"
    IMPOSTOR = "next hop is somebody else"


@dataclass(frozen=True)
class Send:
    """Bytes; padded if they are DATA."""

    side: str
    length: int
    padding: int = 0


@dataclass(frozen=True)
class End:
    """FIN or END_STREAM, perhaps with the last bytes."""

    side: str
    length: int = 0


@dataclass(frozen=True)
class Reset:
    """RST or RST_STREAM."""

    side: str
    code: int


@dataclass(frozen=True)
class Grant:
    """Stream window."""

    side: str
    length: int


@dataclass(frozen=True)
class Resize:
    """SETTINGS_INITIAL_WINDOW_SIZE of a tunnel that is running."""

    side: str
    window: int


@dataclass(frozen=True)
class Goodbye:
    """GOAWAY of a scripted tunnel."""

    side: str
    includes_stream: bool


@dataclass(frozen=True)
class HangUp:
    """A scripted tunnel's socket is gone."""

    side: str


@dataclass(frozen=True)
class Answer:
    """The verdict."""


@dataclass(frozen=True)
class Respond:
    """The scripted next hop's response."""

    status: int


@dataclass(frozen=True)
class Pass:
    """Time."""

    tens_of_seconds: int


@dataclass(frozen=True)
class Kill:
    """The policy changed."""


@dataclass(frozen=True)
class Drain:
    """The workload goes."""

    is_immediate: bool


Step = (
    Send | End | Reset | Grant | Resize | Goodbye | HangUp | Answer | Respond | Pass | Kill | Drain
)


@dataclass(frozen=True)
class Scenario:
    """One connection's script."""

    way: Way
    outcome: Outcome
    window: int
    """That a scripted tunnel opens streams with."""
    our_window: int
    """That the engine opens streams with."""
    steps: tuple[Step, ...]
    headers: tuple[tuple[str, str], ...] = field(default=())
    """Of the request (inbound)."""


SIDES = st.sampled_from(["near", "far"])
CODES = [NO_ERROR, CANCEL, INTERNAL_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED]
LENGTHS = st.one_of(st.integers(1, 40), st.integers(1, 70_000), st.sampled_from([16_384, 65_535]))
WINDOWS = [0, 1, 10, 65_535, 1 << 20]

_SENDS = st.builds(Send, SIDES, LENGTHS, st.sampled_from([0, 0, 0, 1, 255]))
_ENDS = st.builds(End, SIDES, st.sampled_from([0, 0, 5]))
_RESETS = st.builds(Reset, SIDES, st.sampled_from(CODES))
_WINDOWS = st.one_of(
    st.builds(Grant, SIDES, st.integers(1, 70_000)),
    st.builds(Resize, SIDES, st.sampled_from(WINDOWS)),
)
_RARE = st.one_of(
    st.builds(Goodbye, SIDES, st.booleans()),
    st.builds(HangUp, SIDES),
    st.builds(Pass, st.integers(1, 3)),
    st.just(Kill()),
    st.builds(Drain, st.booleans()),
)
_STEPS: SearchStrategy[Step] = st.one_of(_SENDS, _SENDS, _ENDS, _WINDOWS, _RESETS, _RARE)

_STATUS = st.sampled_from([200, 200, 200, 200, 200, 204, 401, 503])
_OUTCOMES = {
    Way.OUTBOUND_TCP: [Outcome.SERVED, Outcome.REFUSED, Outcome.HANGS],
    Way.OUTBOUND_HBONE: [
        Outcome.SERVED,
        Outcome.WITH_HEADERS,
        Outcome.REFUSED,
        Outcome.HANGS,
        Outcome.IMPOSTOR,
    ],
    Way.INBOUND_HBONE: [
        Outcome.SERVED,
        Outcome.WITH_HEADERS,
        Outcome.WITH_PREFACE,
        Outcome.REFUSED,
        Outcome.HANGS,
    ],
    Way.PLAINTEXT: [Outcome.SERVED, Outcome.REFUSED, Outcome.HANGS],
}
_DENIALS = [Outcome.DENIED_EARLY, Outcome.DENIED_BY_POLICY]
_REQUEST_HEADERS = st.lists(
    st.sampled_from(
        [
            ("baggage", "a=b"),
            ("baggage", "k8s.namespace.name=ns"),
            ("forwarded", 'for="1.2.3.4:5";host=web.shop'),
            ("forwarded", "host=second"),
            ("x-forwarded-network", "west"),
            ("traceparent", "0" * 55),
            ("traceparent", f"00-{'1f' * 16}-{'e0' * 8}-01"),
            ("anything", "else"),
        ]
    ),
    max_size=3,
)


@st.composite
def scenarios(draw: st.DrawFn, way: Way) -> Scenario:
    """Scripts of one way; most are served at once."""
    served = _OUTCOMES[way]
    outcome = draw(st.sampled_from([*[Outcome.SERVED] * 4, *served, *_DENIALS]))
    steps: list[Step] = draw(st.lists(_STEPS, max_size=8))
    answered_at = draw(st.sampled_from([0, 0, 0, 1, 2, 99]))
    steps.insert(answered_at, Answer())
    if way.is_far_a_stream:
        later = draw(st.integers(0, 2))
        steps.insert(min(answered_at, len(steps)) + 1 + later, Respond(draw(_STATUS)))
    return Scenario(
        way,
        outcome,
        draw(st.sampled_from([*WINDOWS, 1 << 20, 1 << 20])),
        draw(st.sampled_from([65_535, 4 << 20])),
        tuple(steps),
        tuple(draw(_REQUEST_HEADERS)) if way.is_near_a_stream else (),
    )
