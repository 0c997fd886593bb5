# SPDX-License-Identifier: Apache-2.0
"""The forms of an authority."""

from __future__ import annotations

import pytest

from ztunnel_py.decide import authority
from ztunnel_py.decide.authority import HostPort
from ztunnel_py.state.address import SockAddr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:80", SockAddr.parse("10.0.0.1:80")),
        ("[2001:db8::1]:80", SockAddr.parse("[2001:db8::1]:80")),
        ("[::ffff:10.0.0.1]:80", SockAddr.parse("[::ffff:10.0.0.1]:80")),
        ("web.test:8080", HostPort("web.test", 8080)),
        ("*.test:80", HostPort("*.test", 80)),
        ("10.0.0.256:80", HostPort("10.0.0.256", 80)),
    ],
)
def test_address_or_hostname_with_a_port(text: str, expected: object) -> None:
    assert authority.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1",
        "web.test",
        "web.test:",
        ":80",
        "web.test:65536",
        "web.test:-1",
        "web.test:٣",
        "::1:80",
        "[::1]",
        "[web]:80",
        "user@web.test:80",
        "web.test:80/path",
        "web test:80",
        "web.test:80\n",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        authority.parse(text)
