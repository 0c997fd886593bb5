# SPDX-License-Identifier: Apache-2.0
"""YAML as plain values."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel_py import yaml_tree as tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: no", {"a": "no"}),
        ("[0x10, 0o17, -5, 012, 1.5, 1e3, '1']", [16, 15, -5, "012", 1.5, 1000.0, "1"]),
        ("[true, False, ~, null, '', yes]", [True, False, None, None, "", "yes"]),
        ("a:", {"a": None}),
        ("[!Exact a, !Exact 1, !Presence []]", [{"Exact": "a"}, {"Exact": "1"}, {"Presence": []}]),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("[!!str 5]", ["5"]),
        ('{"80": 8080}', {"80": 8080}),
    ],
)
def test_words_mean_what_they_mean_in_yaml_1_2(text: str, value: object) -> None:
    assert tree.parse(text) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: 1\na: 2", "line 2: duplicate key 'a'"),
        ("a: [", "line 2: "),
        ("a: *x", "line 1: unknown alias 'x'"),
        ("&x {a: *x}", "line 1: unknown alias 'x'"),
        ("!!python/object:os.system {}", "line 1: unexpected tag"),
        ("a: 1\n---\nb: 2", "more than one YAML document"),
        ("? [a]\n: 1", "line 1: a key must be"),
        ("a: \x07", "unacceptable character"),
    ],
)
def test_what_states_do_not_need_is_an_error(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        tree.parse(text)


def test_depth_is_no_danger() -> None:
    assert tree.parse("[" * 900 + "]" * 900) is not None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(max_codepoint=0xD7FF)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
)


@given(values)
def test_json_is_understood(value: object) -> None:
    assert tree.parse(json.dumps(value)) == value
