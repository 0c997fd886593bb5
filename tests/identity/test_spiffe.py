# SPDX-License-Identifier: Apache-2.0
"""The text of an identity."""

from __future__ import annotations

import pytest

from ztunnel_py.identity.spiffe import Identity


@pytest.mark.spec("ops-1")
def test_identity_is_read_and_printed_alike() -> None:
    text = "spiffe://td/ns/a/sa/b"

    identity = Identity.parse(text)

    assert identity == ("td", "a", "b")
    assert str(identity) == text


@pytest.mark.spec("ops-1")
@pytest.mark.parametrize(
    "text",
    [
        "spiffe://td/ns/a/sa",
        "spiffe://td/ns/a/sa/b/",
        "td/ns/a/sa/b",
        "spiffe://td/foo/a/sa/b",
        "spiffe://td/ns/a/foo/b",
        "SPIFFE://td/ns/a/sa/b",
        "",
    ],
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not spiffe://"):
        Identity.parse(text)


@pytest.mark.spec("ops-2")
def test_parts_may_be_empty() -> None:
    assert Identity.parse("spiffe://td/ns//sa/") == ("td", "", "")
