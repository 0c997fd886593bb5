# SPDX-License-Identifier: Apache-2.0
"""The discovery protocol: what is asked, what is remembered, what is answered. No I/O, no clock.

A stream begins with one request for each type, which names the version of every resource that was
accepted on earlier streams; the server then sends only what differs. Each response is answered
once, after it has been applied: accepted, or refused with what is wrong. What a refused response
had of good resources counts all the same.

A session outlives its streams. What it remembers may become too much for one request; then a stream
claims nothing, and the first response of each type, which is everything, replaces what was known.

Source: spec state, sections 1.4 to 1.6 and 1.8; ztunnel
src/xds/client.rs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ztunnel_py.proto.discovery_pb2 import Node

ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"
TYPES = (ADDRESS, AUTHORIZATION)
"""What is subscribed to, in the order of the requests."""
PROBLEMS_SAID = 100
"""How many refused resources an answer names; it must stay small enough to be read."""


class Opening(NamedTuple):
    """The first request of a type on a stream."""

    request: DeltaDiscoveryRequest
    versions: Mapping[str, str]
    """Its initial versions, kept apart since there may be many."""


@dataclass(slots=True)
class Outcome:
    """What became of a response."""

    type_url: str
    nonce: str
    accepted: dict[str, str] = field(default_factory=dict)
    """Versions of the resources that were applied, by name."""
    aliases: set[str] = field(default_factory=set)
    """Other names of delivered resources."""
    rejected: dict[str, str] = field(default_factory=dict)
    """What is wrong with the others, by name."""
    removed: set[str] = field(default_factory=set)

    def names(self, name: str) -> bool:
        """Whether the response had something to say of `name`."""
        return (
            name in self.accepted
            or name in self.aliases
            or name in self.rejected
            or name in self.removed
        )


class Session:
    """What this client and a control plane have agreed on.

    Args:
        node: who this client is.
        on_demand: ask for addresses one by one instead of hearing of all.
    """

    def __init__(self, node: Node, *, on_demand: bool = False) -> None:
        self._node = node
        self._on_demand = on_demand
        self._known: dict[str, dict[str, str]] = {type_url: {} for type_url in TYPES}
        self._expected = {AUTHORIZATION} if on_demand else set(TYPES)
        self._claims_nothing = False
        self._complete: set[str] = set()

    @property
    def is_ready(self) -> bool:
        """Whether a response of each type that comes unasked has been accepted; for good."""
        return not self._expected

    def open(self) -> list[Opening]:
        """The first requests of a new stream."""
        self._complete = set(TYPES) if self._claims_nothing else set()
        self._claims_nothing = False
        return [self._opening(type_url) for type_url in TYPES]

    def claim_nothing(self) -> None:
        """Has the next stream begin as if it were the first; its claims were too large.

        On demand, claims are also what is subscribed to, and stay.
        """
        self._claims_nothing = not self._on_demand

    def replaced(self, type_url: str) -> Collection[str]:
        """Names that are gone if a response of that type does not have them; usually none."""
        return self._known[type_url] if type_url in self._complete else ()

    def answer(self, outcome: Outcome) -> DeltaDiscoveryRequest:
        """The answer to a response that has been applied, which is remembered from now on.

        A resource that was refused keeps the version that was accepted before, if any. A response
        of unknown type is accepted, as ztunnel does.
        """
        answer = DeltaDiscoveryRequest(type_url=outcome.type_url, response_nonce=outcome.nonce)
        known = self._known.get(outcome.type_url)
        if known is not None:
            if known:
                known.update(outcome.accepted)
            else:  # the first response may have very many: to copy them would take long
                known = self._known[outcome.type_url] = outcome.accepted
            for name in outcome.removed:
                known.pop(name, None)
            self._complete.discard(outcome.type_url)
        if outcome.rejected:
            answer.error_detail.CopyFrom(Status(message=_problems(outcome.rejected)))
        else:
            self._expected.discard(outcome.type_url)
        return answer

    def demand(self, name: str) -> DeltaDiscoveryRequest | None:
        """Asks for one address, also on every stream to come; None if that is done already."""
        if name in self._known[ADDRESS]:
            return None
        self._known[ADDRESS][name] = ""
        return DeltaDiscoveryRequest(type_url=ADDRESS, resource_names_subscribe=[name])

    def _opening(self, type_url: str) -> Opening:
        request = DeltaDiscoveryRequest(node=self._node, type_url=type_url)
        if self._on_demand and type_url == ADDRESS:
            # To ask for everything and to take it back at once is how one asks for nothing.
            request.resource_names_subscribe.append("*")
            request.resource_names_unsubscribe.append("*")
        return Opening(request, {} if self._complete else dict(self._known[type_url]))


def _problems(rejected: Mapping[str, str]) -> str:
    said = [f"{n}: {problem}" for n, problem in itertools.islice(rejected.items(), PROBLEMS_SAID)]
    if len(rejected) > PROBLEMS_SAID:
        said.append(f"and {len(rejected) - PROBLEMS_SAID} more")
    return "; ".join(said)
