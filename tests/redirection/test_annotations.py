# SPDX-License-Identifier: Apache-2.0
"""Annotations of pods: what they switch, and what is no switch."""

from __future__ import annotations

import pytest

from ztunnel_py.redirection.annotations import options_of
from ztunnel_py.redirection.plan import Options

DNS = "ambient.istio.io/dns-capture"
BYPASS = "ambient.istio.io/bypass-inbound-capture"
INTERFACES = "istio.io/reroute-virtual-interfaces"


@pytest.mark.spec("redir-5")
@pytest.mark.parametrize(
    ("text", "is_on"), [("true", True), ("1", True), ("T", True), ("false", False), ("F", False)]
)
@pytest.mark.parametrize("is_usual", [True, False])
def test_pod_overrides_the_dns_capture_of_its_node(text: str, is_on: bool, is_usual: bool) -> None:
    node = Options(has_dns=is_usual)

    assert options_of("shop/cart", {DNS: text}, node) == Options(has_dns=is_on)
    assert options_of("shop/cart", {}, node) == node


@pytest.mark.spec("redir-6")
@pytest.mark.parametrize("text", ["maybe", "", "tRUE", "yes", " true"])
@pytest.mark.parametrize("is_usual", [True, False])
def test_what_is_no_boolean_counts_as_absent_and_is_told(
    text: str, is_usual: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    node = Options(has_dns=is_usual)

    assert options_of("shop/cart", {DNS: text}, node) == node

    said = capfd.readouterr().err
    assert "warn" in said
    assert f"pod shop/cart: annotation {DNS} is {text!r}" in said


def test_inbound_capture_is_bypassed_if_asked() -> None:
    assert options_of("shop/cart", {BYPASS: "true"}, Options()) == Options(is_ingress=True)


def test_virtual_interfaces_are_trimmed_and_empty_ones_dropped() -> None:
    found = options_of("shop/cart", {INTERFACES: " a, ,b "}, Options())

    assert found.virtual_interfaces == ("a", "b")
