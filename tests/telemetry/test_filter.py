# SPDX-License-Identifier: Apache-2.0
"""Log filters."""

from __future__ import annotations

import pytest

from ztunnel_py.errors import ConfigError
from ztunnel_py.telemetry.filter import Filter, Level


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("debug", Level.DEBUG),
        ("DeBuG", Level.DEBUG),
        ("0", Level.OFF),
        ("5", Level.TRACE),
        ("", Level.ERROR),
    ],
)
def test_bare_level_holds_for_every_target(text: str, level: Level) -> None:
    assert Filter.parse(text).level("any", ()) is level


def test_longest_matching_target_decides_whatever_the_order() -> None:
    log_filter = Filter.parse("ztunnel::xds::client=off,trace,ztunnel::xds=warn")

    assert log_filter.level("ztunnel::xds::client", ()) is Level.OFF
    assert log_filter.level("ztunnel::xds", ()) is Level.WARN
    assert log_filter.level("ztunnel::state", ()) is Level.TRACE


def test_target_matches_as_a_prefix_of_text() -> None:
    assert Filter.parse("ztunnel::proxy=info").level("ztunnel::proxyfactory", ()) is Level.INFO


def test_target_without_directive_is_off() -> None:
    assert Filter.parse("ztunnel::xds=debug").level("access", ()) is Level.OFF


def test_bare_target_is_at_trace() -> None:
    assert Filter.parse("off,ztunnel::dns").level("ztunnel::dns::server", ()) is Level.TRACE


def test_blank_is_not_trimmed_so_the_level_becomes_a_target() -> None:
    assert Filter.parse(" info").level("access", ()) is Level.OFF


def test_later_directive_for_the_same_target_wins() -> None:
    assert Filter.parse("info,access=debug,access=warn").level("access", ()) is Level.WARN


def test_directive_with_fields_holds_for_events_that_have_all_of_them() -> None:
    log_filter = Filter.parse("warn,access[{error,src.addr}]=debug")

    assert log_filter.level("access", {"error", "src.addr", "direction"}) is Level.DEBUG
    assert log_filter.level("access", {"error"}) is Level.WARN


@pytest.mark.parametrize(
    "text", ["a=b=c", "a=nonsense", "a=6", "a[{b=info", "a[{b}][{c}]=info", "info,a=b=c"]
)
def test_malformed_directive_is_an_error_that_names_the_variable(text: str) -> None:
    with pytest.raises(ConfigError, match="RUST_LOG"):
        Filter.parse(text)


def test_bounds_are_equal_where_no_directive_asks_for_fields() -> None:
    assert Filter.parse("info,access=debug").bounds("access") == (Level.DEBUG, Level.DEBUG)


def test_bounds_span_what_fields_can_change() -> None:
    assert Filter.parse("info,access[{error}]=trace").bounds("access") == (Level.INFO, Level.TRACE)


def test_text_has_the_most_specific_first_and_is_read_back() -> None:
    written = "info,a=warn,ztunnel::xds=debug,a[{x,y}]=error,[{x}]=trace,a=off"

    text = str(Filter.parse(written))

    assert text == "ztunnel::xds=debug,a[{x,y}]=error,a=off,[{x}]=trace,info"
    assert str(Filter.parse(text)) == text
