# SPDX-License-Identifier: Apache-2.0
"""JSON that is made a piece at a time."""

from __future__ import annotations

import json

import pytest

from ztunnel_py.admin.json_text import Each, InOrder, pieces, to_json


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        "line\nfeed \x00 ü 😀 \udcff",
        {"b": [], "a": {}, "ü": {"d": 1.5, "c": [True, None, [1, [2, {"x": []}]]]}},
        [{"b": 1, "a": [{"z": "\n", "y": {"x": [[]]}}]}, "text", 7],
    ],
)
def test_text_is_that_of_the_standard_library(value: object) -> None:
    expected = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)

    assert to_json(value) == expected


def test_list_in_the_making_reads_like_the_list() -> None:
    made = {"some": Each(lambda n: {"n": n}, (1, 2)), "none": {"deep": Each(str, ())}}

    assert to_json(made) == to_json({"some": [{"n": 1}, {"n": 2}], "none": {"deep": []}})


def test_elements_are_made_when_their_turn_has_come() -> None:
    made: list[int] = []

    def make(n: int) -> list[int]:
        made.append(n)
        return list(range(1000))

    texts = pieces({"all": Each(make, range(1000))})
    start = [next(texts) for _ in range(5)]

    assert "0" in "".join(start)
    assert made == [0]


def test_values_come_in_order_of_their_keys() -> None:
    words = ["pear", "apple", "fig", "date", "apple"]

    ordered = InOrder(words, lambda word: word)

    assert list(ordered) == list(ordered) == sorted(words)


def test_order_is_that_of_the_moment_even_if_what_is_ordered_changes() -> None:
    words = {"b": 1, "a": 2}
    ordered = InOrder(words, str)

    words["c"] = 3

    assert list(ordered) == ["a", "b"]
