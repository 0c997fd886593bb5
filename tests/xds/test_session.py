# SPDX-License-Identifier: Apache-2.0
"""The discovery protocol, whatever a server sends and however often a stream breaks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ztunnel_py.proto.discovery_pb2 import DeltaDiscoveryRequest, Node
from ztunnel_py.xds.session import (
    ADDRESS,
    AUTHORIZATION,
    PROBLEMS_SAID,
    TYPES,
    Outcome,
    Session,
)

NODE = Node(id="ztunnel~1.1.1.1~p.n~n.svc.cluster.local")


def versions(session: Session, type_url: str) -> dict[str, str]:
    """What the next stream says it has."""
    return next(
        dict(opening.versions) for opening in session.open() if opening.request.type_url == type_url
    )


@pytest.mark.spec("state-4", "state-5")
def test_a_stream_begins_with_addresses_and_then_policies() -> None:
    requests = [opening.request for opening in Session(NODE).open()]

    assert requests == [
        DeltaDiscoveryRequest(node=NODE, type_url=ADDRESS),
        DeltaDiscoveryRequest(node=NODE, type_url=AUTHORIZATION),
    ]


@pytest.mark.spec("state-6")
def test_on_demand_a_stream_begins_with_no_addresses() -> None:
    addresses, policies = (opening.request for opening in Session(NODE, on_demand=True).open())

    assert list(addresses.resource_names_subscribe) == ["*"]
    assert list(addresses.resource_names_unsubscribe) == ["*"]
    assert policies == DeltaDiscoveryRequest(node=NODE, type_url=AUTHORIZATION)


@pytest.mark.spec("state-13")
def test_an_acceptance_names_type_and_nonce_only() -> None:
    answer = Session(NODE).answer(Outcome(ADDRESS, "n1", accepted={"a": "1"}))

    assert answer == DeltaDiscoveryRequest(type_url=ADDRESS, response_nonce="n1")


@pytest.mark.spec("state-15")
def test_a_refusal_joins_what_is_wrong() -> None:
    outcome = Outcome(ADDRESS, "n1", rejected={"a": "no address", "b": "no name"})

    answer = Session(NODE).answer(outcome)

    assert answer.error_detail.message == "a: no address; b: no name"
    assert answer.error_detail.code == 0


def test_a_refusal_stays_short_whatever_is_wrong() -> None:
    outcome = Outcome(ADDRESS, "n1", rejected={f"r{i}": "bad" for i in range(100_000)})

    message = Session(NODE).answer(outcome).error_detail.message

    assert message.endswith(f"r{PROBLEMS_SAID - 1}: bad; and {100_000 - PROBLEMS_SAID} more")


@pytest.mark.spec("state-18")
def test_versions_of_all_responses_are_remembered() -> None:
    session = Session(NODE)

    session.answer(Outcome(ADDRESS, "n1", accepted={"a": "1", "b": "1"}))
    session.answer(Outcome(ADDRESS, "n2", accepted={"b": "2", "c": "1"}))

    assert versions(session, ADDRESS) == {"a": "1", "b": "2", "c": "1"}


def test_a_refused_update_keeps_the_version_that_was_accepted_before() -> None:
    session = Session(NODE)
    session.answer(Outcome(ADDRESS, "n1", accepted={"a": "1"}))

    session.answer(Outcome(ADDRESS, "n2", rejected={"a": "bad"}))

    assert versions(session, ADDRESS) == {"a": "1"}


@pytest.mark.spec("state-19")
def test_a_policy_without_a_version_is_listed_all_the_same() -> None:
    session = Session(NODE)

    session.answer(Outcome(AUTHORIZATION, "n1", accepted={"ns/p": ""}))

    assert versions(session, AUTHORIZATION) == {"ns/p": ""}


def test_a_response_of_unknown_type_is_accepted_and_forgotten() -> None:
    session = Session(NODE)

    answer = session.answer(Outcome("type.googleapis.com/other", "n1", accepted={"x": "1"}))

    assert answer == DeltaDiscoveryRequest(
        type_url="type.googleapis.com/other", response_nonce="n1"
    )
    assert [versions(session, type_url) for type_url in TYPES] == [{}, {}]


@pytest.mark.parametrize(
    ("on_demand", "wanted"), [(False, {ADDRESS, AUTHORIZATION}), (True, {AUTHORIZATION})]
)
@given(refused=st.sets(st.sampled_from(TYPES)))
def test_ready_once_what_comes_unasked_has_been_accepted(
    on_demand: bool, wanted: set[str], refused: set[str]
) -> None:
    session = Session(NODE, on_demand=on_demand)
    for type_url in refused:
        session.answer(Outcome(type_url, "n1", rejected={"a": "bad"}))

    for type_url in wanted:
        assert not session.is_ready
        session.answer(Outcome(type_url, "n2"))

    assert session.is_ready


def test_a_demand_asks_for_one_name_and_is_repeated_on_later_streams() -> None:
    session = Session(NODE, on_demand=True)
    session.answer(Outcome(ADDRESS, "n1", accepted={"/10.0.0.2": "v2"}))

    asked = [session.demand(name) for name in ("/10.0.0.1", "/10.0.0.2")]

    assert asked[0] == DeltaDiscoveryRequest(
        type_url=ADDRESS, resource_names_subscribe=["/10.0.0.1"]
    )
    assert versions(session, ADDRESS) == {"/10.0.0.1": "", "/10.0.0.2": "v2"}


def test_a_session_that_claims_nothing_replaces_what_it_knows_once() -> None:
    session = Session(NODE)
    session.answer(Outcome(ADDRESS, "n1", accepted={"a": "1", "b": "1"}))
    assert list(session.replaced(ADDRESS)) == []

    session.claim_nothing()
    assert versions(session, ADDRESS) == {}
    assert list(session.replaced(ADDRESS)) == ["a", "b"]
    session.answer(Outcome(ADDRESS, "n1", accepted={"a": "2"}, removed={"b"}))

    assert list(session.replaced(ADDRESS)) == []
    assert versions(session, ADDRESS) == {"a": "2"}


def test_on_demand_a_session_claims_what_it_is_subscribed_to_however_much_that_is() -> None:
    session = Session(NODE, on_demand=True)
    session.demand("/10.0.0.1")

    session.claim_nothing()

    assert versions(session, ADDRESS) == {"/10.0.0.1": ""}
    assert list(session.replaced(ADDRESS)) == []


NAMES = st.sampled_from("abcdef")


class Server(RuleBasedStateMachine):
    """A server that changes, and a client that must know what it has, through any breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(NODE)
        self.has: dict[str, dict[str, str]] = {type_url: {} for type_url in TYPES}
        self.nonce = 0

    @rule(
        type_url=st.sampled_from(TYPES),
        accepted=st.dictionaries(NAMES, st.text("0123", max_size=2)),
        rejected=st.dictionaries(NAMES, st.just("bad")),
        removed=st.sets(NAMES),
    )
    def push(
        self,
        type_url: str,
        accepted: dict[str, str],
        rejected: dict[str, str],
        removed: set[str],
    ) -> None:
        """A response that was applied."""
        self.nonce += 1
        accepted = {name: v for name, v in accepted.items() if name not in rejected}
        has = self.has[type_url] | accepted
        self.has[type_url] = {name: v for name, v in has.items() if name not in removed}

        answer = self.session.answer(
            Outcome(type_url, str(self.nonce), accepted, set(), rejected, removed)
        )

        assert (answer.type_url, answer.response_nonce) == (type_url, str(self.nonce))
        assert answer.HasField("error_detail") == bool(rejected)
        assert bool(answer.error_detail.message) == bool(rejected)
        assert not answer.HasField("node")
        assert not answer.initial_resource_versions

    @invariant()
    def a_new_stream_would_name_exactly_what_was_accepted(self) -> None:
        """So the server sends what differs, and nothing else."""
        found = {type_url: versions(self.session, type_url) for type_url in TYPES}

        assert found == self.has


TestServer = Server.TestCase
TestServer.settings = settings(max_examples=50, stateful_step_count=20)
