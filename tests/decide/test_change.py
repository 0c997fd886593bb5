# SPDX-License-Identifier: Apache-2.0
"""Changes that are tried before they are advised."""

from __future__ import annotations

from tests.state.build import at, pod, service
from ztunnel_py.decide import change
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import Health


def test_workload_that_changes_does_not_become_the_newest_of_its_address() -> None:
    first, last = pod("first", "10.0.0.1"), pod("last", "10.0.0.1")
    store = Store()
    store.apply([first, last])
    made = change.of_workload(store, first.workload, "", "capacity", 3, capacity=3)

    store.apply(made.updates)

    assert store.workload_at(at("10.0.0.1")) is last.workload
    changed = store.workload(first.workload.uid)
    assert changed is not None
    assert changed.capacity == 3


def test_change_of_a_copy_leaves_the_store_alone() -> None:
    web = service("web.test", "/10.1.0.1")
    sick = pod("a", "10.0.0.1", serves={"default/web.test": {}}, health=Health.UNHEALTHY)
    store = Store()
    store.apply([sick, web])
    twin = store.copy()

    twin.apply(
        change.of_workload(
            twin, sick.workload, "", "status", "Healthy", health=Health.HEALTHY
        ).updates
    )

    assert [list(one.endpoints(web.service)) for one in (store, twin)] == [
        [],
        list(twin.all_endpoints(web.service)),
    ]
    assert len(list(twin.endpoints(web.service))) == 1
    assert store.workload_at(at("10.0.0.1")) is sick.workload
