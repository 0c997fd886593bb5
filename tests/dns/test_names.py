# SPDX-License-Identifier: Apache-2.0
"""Which hostnames a name may stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel_py.dns import names
from ztunnel_py.dns.names import View, aliases, candidates, kubernetes_search, parse

DOMAIN = parse("cluster.local")
VIEW = View("shop", DOMAIN, kubernetes_search("shop", DOMAIN))
BARE = VIEW._replace(search=())

labels = st.text("abcxyz-019", min_size=1, max_size=5)
some_names = st.lists(st.one_of(labels, st.sampled_from(["svc", "shop"])), min_size=1, max_size=6)
views = st.builds(
    View,
    labels,
    st.just(DOMAIN),
    st.lists(some_names.map(tuple), max_size=4).map(tuple),
)


def shown(asked: str, view: View) -> list[str]:
    return [".".join(alias.name) for alias in aliases(parse(asked), view)]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("a", ["a", "a.shop.svc.cluster.local"]),
        ("a.b", ["a.b", "a.b.svc.cluster.local", "a.b.shop.svc.cluster.local"]),
        ("a.b.svc", ["a.b.svc", "a.b.svc.cluster.local", "a.b.svc.svc.cluster.local"]),
        ("a.b.c", ["a.b.c", "a.b.c.svc.cluster.local"]),
        ("a.b.c.svc", ["a.b.c.svc", "a.b.c.svc.cluster.local"]),
        ("a.b.c.d", ["a.b.c.d"]),
        ("a.b.c.d.svc", ["a.b.c.d.svc"]),
    ],
)
def test_short_names_are_expanded_by_their_number_of_labels(asked: str, found: list[str]) -> None:
    assert shown(asked, BARE) == found


def test_search_domains_are_taken_off_and_what_is_left_is_expanded() -> None:
    found = aliases(parse("a.shop.svc.cluster.local"), VIEW)

    assert [(".".join(one.name), one.stripped) for one in found] == [
        ("a.shop.svc.cluster.local", None),
        ("a", ("a",)),
        ("a.shop", ("a", "shop")),
        ("a.shop.shop.svc.cluster.local", ("a", "shop")),
        ("a.shop.svc", ("a", "shop", "svc")),
        ("a.shop.svc.svc.cluster.local", ("a", "shop", "svc")),
    ]


def test_name_that_is_a_search_domain_is_left_alone() -> None:
    assert shown("svc.cluster.local", VIEW)[0] == "svc.cluster.local"
    assert all(one.name for one in aliases(parse("svc.cluster.local"), VIEW))


@pytest.mark.parametrize(
    ("name", "found"),
    [("x.y.z", ["x.y.z", "*.y.z", "*.z"]), ("x", ["x"]), ("*.z", ["*.z", "*.z"])],
)
def test_wildcards_grow_wider_and_never_stand_for_everything(name: str, found: list[str]) -> None:
    assert list(candidates(parse(name))) == found


@pytest.mark.parametrize("label", [b"a.b", b"a b", b"\xe4", b"\x00", b"a\\", b""])
def test_labels_that_no_host_has_name_none(label: bytes) -> None:
    assert names.hostname((label, b"shop")) is None


def test_root_names_no_host() -> None:
    assert names.hostname(()) is None


@given(some_names.map(tuple), views)
def test_asked_name_comes_first_and_nothing_comes_twice(asked: names.Labels, view: View) -> None:
    found = [alias.name for alias in aliases(asked, view)]

    assert found[0] == asked
    assert len(found) == len(set(found))


@given(some_names.map(tuple), views)
def test_stripped_name_is_a_proper_start_of_the_asked_one(asked: names.Labels, view: View) -> None:
    for alias in aliases(asked, view)[1:]:
        if alias.stripped is None:
            assert alias.name[: len(asked)] == asked
        else:
            assert 0 < len(alias.stripped) < len(asked)
            assert asked[: len(alias.stripped)] == alias.stripped
            assert asked[len(alias.stripped) :] in view.search
            assert alias.name[: len(alias.stripped)] == alias.stripped


@given(some_names.map(tuple))
def test_every_candidate_covers_the_name(name: names.Labels) -> None:
    exact, *wider = candidates(name)

    assert exact == ".".join(name)
    assert all(exact.endswith(one.removeprefix("*")) and one.count(".") for one in wider)
    assert len(wider) == len(name) - 1
