# SPDX-License-Identifier: Apache-2.0
"""What a decision looks for in vain is noted under the name the control plane knows it by."""

from __future__ import annotations

import pytest

from tests.state.build import at, pod, service
from ztunnel_py.state.misses import Misses
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import NamespacedHostname

STORE = Store()
STORE.apply([pod("a", "10.0.0.1"), service("web.test", "/10.1.0.1")])
WEB, OTHER = NamespacedHostname("default", "web.test"), NamespacedHostname("default", "other.test")


def test_what_is_known_is_found_and_not_noted() -> None:
    seen = Misses(STORE)

    found = [
        seen.at(at("10.0.0.1")),
        seen.workload_at(at("10.0.0.1")),
        seen.at(at("10.1.0.1")),
        seen.find(at("10.1.0.1")),
        seen.find(WEB),
    ]

    assert None not in found
    assert found == [
        STORE.at(at("10.0.0.1")),
        STORE.workload_at(at("10.0.0.1")),
        *[STORE.service(WEB)] * 3,
    ]
    assert seen.names == set()


@pytest.mark.parametrize("network", ["", "n"])
def test_an_unknown_address_is_noted_with_its_network(network: str) -> None:
    seen = Misses(STORE)

    assert seen.at(at("10.0.0.2", network)) is None
    assert seen.workload_at(at("10.0.0.3", network)) is None
    assert seen.find(at("10.0.0.4", network)) is None

    assert seen.names == {f"{network}/10.0.0.{last}" for last in (2, 3, 4)}


def test_an_unknown_hostname_is_noted_with_its_namespace() -> None:
    seen = Misses(STORE)

    assert seen.find(OTHER) is None

    assert seen.names == {"default/other.test"}
