# SPDX-License-Identifier: Apache-2.0
"""The meshes that decisions are timed in are what they are said to be."""

from __future__ import annotations

import pytest

from bench import decide_mesh
from ztunnel_py.state.store import Store
from ztunnel_py.xds import decode


@pytest.mark.parametrize("is_endpoint", [False, True])
def test_a_pod_is_the_same_as_an_update_and_on_the_wire(is_endpoint: bool) -> None:
    pod = decide_mesh.pod(7, is_endpoint)

    assert decode.address(decide_mesh.payload(pod)) == pod


def test_the_service_has_the_endpoints_that_were_asked_for() -> None:
    store = Store()
    store.apply([decide_mesh.service(), *decide_mesh.pods(3, 4)])

    found = store.service(decide_mesh.KEY)

    assert found is not None
    assert len(store.members(found).pairs) == 3
    assert len(list(store.workloads())) == 7
