# SPDX-License-Identifier: Apache-2.0
"""The commands that show the mesh, from a proxy and from saved dumps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import answering
from tests.cli.dumps import OLD, SERVICES, WORKLOADS, ZTUNNEL
from tests.support.example import mesh
from ztunnel_py.admin.dump_state import dump_state
from ztunnel_py.admin.http import Answer
from ztunnel_py.admin.json_text import to_json
from ztunnel_py.state.store import Store
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.cli.conftest import Said

    Command = Callable[..., Awaitable[Said]]


@pytest.mark.parametrize("dump", [ZTUNNEL, OLD], ids=["now", "old"])
async def test_workloads_of_a_dump_of_ztunnel(
    dump: Any, command: Command, saved: Callable[[Any], str]
) -> None:
    said = await command("workloads", "--dump", saved(dump))

    assert said.status == 0
    assert [row["NAME"] for row in said.rows()] == ["wp-0", "cart-0", "prices-0"]
    assert said.rows()[2] == {
        "NAMESPACE": "shop",
        "NAME": "prices-0",
        "ADDRESS": "10.1.1.7",
        "NODE": "n2",
        "WAYPOINT": "wp",
        "PROTOCOL": "HBONE",
        "STATUS": "Unhealthy",
    }


@pytest.mark.parametrize("dump", [ZTUNNEL, OLD], ids=["now", "old"])
async def test_services_of_a_dump_of_ztunnel(
    dump: Any, command: Command, saved: Callable[[Any], str]
) -> None:
    said = await command("services", "--dump", saved(dump))

    assert said.rows()[0] == {
        "NAMESPACE": "shop",
        "NAME": "prices",
        "HOSTNAME": "prices.shop.svc.cluster.local",
        "VIP": "10.96.0.9",
        "WAYPOINT": "-",
        "ENDPOINTS": "1/2",
    }


@pytest.mark.parametrize("dump", [ZTUNNEL, OLD], ids=["now", "old"])
async def test_policies_of_a_dump_of_ztunnel(
    dump: Any, command: Command, saved: Callable[[Any], str]
) -> None:
    said = await command("policies", "--dump", saved(dump))

    assert said.rows() == [
        {
            "NAMESPACE": "shop",
            "NAME": "callers",
            "ACTION": "Allow",
            "SCOPE": "Namespace",
            "RULES": "1",
            "DRY RUN": "-",
        }
    ]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (("workloads", "--namespace", "infra"), ["wp-0"]),
        (("workloads", "--node", "n2"), ["wp-0", "prices-0"]),
        (("workloads", "--workload", "ces"), ["prices-0"]),
        (("workloads", "--node", "n1", "--workload", "ces"), []),
        (("services", "--namespace", "infra"), []),
        (("services", "--node", "n1"), ["prices"]),
        (("services", "--workload", "cart"), ["prices"]),
        (("services", "--node", "n1", "--workload", "prices"), []),
        (("policies", "--namespace", "shop"), ["callers"]),
        (("policies", "--namespace", "infra"), []),
    ],
)
async def test_some_can_be_picked(
    argv: tuple[str, ...], names: list[str], command: Command, saved: Callable[[Any], str]
) -> None:
    path = saved(ZTUNNEL)

    table = await command(*argv, "--dump", path)
    listed = await command(*argv, "--dump", path, "--json")

    assert [row["NAME"] for row in table.rows()] == names
    assert [one["name"] for one in json.loads(listed.out)] == names


async def test_json_has_everything(command: Command, saved: Callable[[Any], str]) -> None:
    said = await command("workloads", "--workload", "prices", "--json", "--dump", saved(ZTUNNEL))

    assert json.loads(said.out) == [WORKLOADS[1]]


async def test_running_proxy_is_asked(command: Command) -> None:
    store = Store()
    store.apply(local.parse(mesh(cart="10.40.1.10", prices="10.40.2.20"), "mesh").updates)

    async with answering("/config_dump", Answer(200, to_json(dump_state(store)))) as admin:
        workloads = await command("workloads", "--admin", admin)
        services = await command("services", "--admin", admin)
        policies = await command("policies", "--admin", admin)

    assert [row["ADDRESS"] for row in workloads.rows()] == ["10.40.1.10", "10.40.2.20"]
    assert [row["ENDPOINTS"] for row in services.rows()] == ["1/1"]
    assert [row["NAME"] for row in policies.rows()] == ["prices-callers"]


async def test_values_of_other_types_are_shown_as_absent_or_as_they_are(
    command: Command, saved: Callable[[Any], str]
) -> None:
    strange = {
        "workloads": [7, {"name": ["x"], "workloadIps": 5, "waypoint": "y", "namespace": None}],
        "services": [{"endpoints": [1], "vips": {}, "name": 4}, SERVICES[0] | {"endpoints": 3}],
        "policies": [{"rules": "all"}],
    }
    path = saved(strange)

    for name in ("workloads", "services", "policies"):
        said = await command(name, "--dump", path)
        assert (said.status, said.err) == (0, "")
