# SPDX-License-Identifier: Apache-2.0
"""What may become an entry of the node's set of pods."""

from __future__ import annotations

import ipaddress

import pytest

from ztunnel_py.redirection.host import checked, unmapped
from ztunnel_py.redirection.plan import Family
from ztunnel_py.redirection.programs import RedirectionError


@pytest.mark.parametrize("uid", ["", 'a"', "a b", "a\nb", "x" * 129])
def test_what_is_no_uid_is_refused(uid: str) -> None:
    with pytest.raises(RedirectionError, match="is no UID of a pod"):
        checked(uid)


@pytest.mark.parametrize(
    ("given", "plain", "family"),
    [
        ("10.0.0.1", "10.0.0.1", Family.IPV4),
        ("::ffff:10.0.0.1", "10.0.0.1", Family.IPV4),
        ("fd00::1", "fd00::1", Family.IPV6),
    ],
)
def test_mapped_address_is_one_of_ipv4(given: str, plain: str, family: Family) -> None:
    assert unmapped(ipaddress.ip_address(given)) == (ipaddress.ip_address(plain), family)
