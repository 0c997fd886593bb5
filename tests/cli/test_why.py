# SPDX-License-Identifier: Apache-2.0
"""The command that explains a connection."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.dumps import OLD, ZTUNNEL
from tests.support.example import mesh
from ztunnel_py.__main__ import run
from ztunnel_py.admin.dump_state import dump_state
from ztunnel_py.admin.http import Answer, HttpServer
from ztunnel_py.admin.json_text import to_json
from ztunnel_py.admin.server import admin_server
from ztunnel_py.cli.why import lines
from ztunnel_py.decide.explain import explain
from ztunnel_py.decide.settings import Settings
from ztunnel_py.state.store import Store
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

MESH = mesh(cart="10.40.1.10", prices="10.40.2.20")
DENIED = ["why", "shop/prices-0", "prices.shop.svc.cluster.local"]
SHOWN = """\
shop/prices-0 → prices.shop.svc.cluster.local (10.96.0.50:80)

 1 ✓ source    shop/prices-0 proves spiffe://cluster.local/ns/shop/sa/prices (HBONE, node node-b)
 2 ✓ address   10.96.0.50 is a VIP of service shop/prices.shop.svc.cluster.local
 3 ✓ waypoint  none
 4 ✓ port      80 of the service is 8080 of its endpoints
 5 ✓ endpoints 1 of 1 may be used
               ✓ shop/prices-0, port 8080 (rank 5 by Network, Region, Zone)
 6 ✓ hop       HBONE to shop/prices-0 at 10.40.2.20:15008, authority 10.40.2.20:8080, expecting
               spiffe://cluster.local/ns/shop/sa/prices
 7 ✓ arrival   shop/prices-0 accepts 10.40.2.20:8080 as its own, from
               spiffe://cluster.local/ns/shop/sa/prices
 8 ✗ policies  denied: none of shop/prices-callers allows it
               ✗ shop/prices-callers (ALLOW) does not match: rule 1, clause 1: principal is Exact
                 cluster.local/ns/shop/sa/cart, was cluster.local/ns/shop/sa/prices

=> denied: connection closed due to policy rejection: allow policies exist, but none allowed
fix: add principal cluster.local/ns/shop/sa/prices to shop/prices-callers, rule 1, clause 1
"""


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever terminal, or test runner, this is."""
    monkeypatch.setenv("COLUMNS", "100")


def store() -> Store:
    found = Store()
    found.apply(local.parse(MESH, "mesh.yaml").updates)
    return found


def why(src: str, dst: str) -> partial[dict[str, object]]:
    return partial(lambda: explain(store(), Settings(), src, dst).tree())


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A file with a mesh."""
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH)
    return str(path)


@pytest.fixture
async def admin() -> AsyncIterator[str]:
    """Where a proxy's admin server is."""
    server = admin_server(dict, lambda: None, (("127.0.0.1", 0),), why=why)
    await server.open()
    yield "{}:{}".format(*server.address)
    await server.close()


def test_steps_are_numbered_the_failing_one_is_marked_and_the_fix_is_last(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run([*DENIED, "--state", state])

    assert (status, capsys.readouterr().out) == (2, SHOWN)


def test_connection_that_is_let_through_is_status_0(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(["why", "shop/cart-0", "10.96.0.50:80", "--state", state])

    printed = capsys.readouterr().out
    assert status == 0
    assert printed.endswith("\n=> encrypted and allowed\n")
    assert "✗" not in printed


async def test_running_proxy_says_the_same(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = await asyncio.to_thread(run, [*DENIED, "--admin", admin])

    assert (status, capsys.readouterr().out) == (2, SHOWN)


def test_json_has_the_changes_for_machines(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = run([*DENIED, "--json", "--state", state])

    found = json.loads(capsys.readouterr().out)
    path = ["policies", {"name": "prices-callers", "namespace": "shop"}, "rules", 0, 0, 0]
    assert (status, found["outcome"]) == (2, "denied")
    assert [step["title"] for step in found["steps"] if step["isObstacle"]] == ["policies"]
    assert found["changes"] == [
        {
            "words": "add principal cluster.local/ns/shop/sa/prices to shop/prices-callers, "
            "rule 1, clause 1",
            "edits": [
                {
                    "op": "add",
                    "path": [*path, "principals"],
                    "value": {"Exact": "cluster.local/ns/shop/sa/prices"},
                }
            ],
        }
    ]


@pytest.mark.parametrize(
    ("src", "dst", "error"),
    [
        ("shop/cart", "10.0.0.1", "no workload 'shop/cart'; did you mean shop/cart-0?"),
        ("carts-0", "10.0.0.1", "no workload 'carts-0'; did you mean shop/cart-0?"),
        ("shop/cart-0", "nowhere", "no service or workload 'nowhere'"),
        ("shop/cart-0", "prices.shop:80", "no service or workload 'prices.shop'; did you mean "),
        ("shop/cart-0", "10.0.0.1:99999", "99999 is no port"),
    ],
)
def test_names_that_nobody_has_are_errors_with_suggestions(
    src: str, dst: str, error: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(["why", src, dst, "--state", state])

    printed = capsys.readouterr()
    assert (status, printed.out) == (1, "")
    assert printed.err.startswith(f"error: {error}")


async def test_proxy_suggests_names_too(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = await asyncio.to_thread(run, ["why", "shop/cart", "10.0.0.1", "--admin", admin])

    error = "error: no workload 'shop/cart'; did you mean shop/cart-0?\n"
    assert (status, capsys.readouterr().err) == (1, error)


def test_file_that_cannot_be_read_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    status = run(["why", "a/b", "c/d", "--state", "/nonexistent/mesh.yaml"])

    assert status == 1
    assert capsys.readouterr().err.startswith("error: cannot read /nonexistent/mesh.yaml: ")


@pytest.mark.parametrize("body", ["[]", "{}", "<html>"])
async def test_another_server_is_an_error(body: str, capsys: pytest.CaptureFixture[str]) -> None:
    pages = {"/why": lambda _: Answer(200, body)}
    server = HttpServer("other", (("127.0.0.1", 0),), pages)
    await server.open()
    admin = "{}:{}".format(*server.address)

    status = await asyncio.to_thread(run, ["why", "a", "b", "--admin", admin])
    await server.close()

    assert status == 1
    assert f"what answers at {admin} is not such a proxy" in capsys.readouterr().err


def test_only_the_failing_steps_are_red() -> None:
    shown = list(lines(why(DENIED[1], DENIED[2])(), 100, is_coloured=True))

    red = [line for line in shown if line.startswith("\x1b[31m")]
    assert all("✗" in line or line.startswith("\x1b[31m    ") for line in red)
    assert sum("✗" in line for line in red) == sum("✗" in line for line in shown) == 2


def test_lines_fit_a_narrow_terminal() -> None:
    shown = lines(why(DENIED[1], DENIED[2])(), 80)

    assert all(len(line) <= 80 for line in shown)


@pytest.mark.parametrize("dump", [ZTUNNEL, OLD], ids=["now", "old"])
def test_saved_dump_of_ztunnel_carries_enough(
    dump: Any, saved: Callable[[Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(dump)

    direct = run(["why", "shop/cart-0", "10.1.1.9:80", "--dump", path])
    shown = capsys.readouterr().out
    served = run(["why", "infra/wp-0", "prices.shop.svc.cluster.local", "--json", "--dump", path])
    found = json.loads(capsys.readouterr().out)

    assert (direct, served) == (0, 0)
    assert "infra/wp-0 accepts 10.1.1.9:80 as its own" in shown
    assert found["outcome"] == "encrypted"
    assert "shop/cart-0" in json.dumps(found["steps"])


async def test_saved_dump_says_what_the_proxy_says(
    admin: str, saved: Callable[[Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(to_json(dump_state(store())))

    statuses = [
        await asyncio.to_thread(run, [*DENIED, *source])
        for source in (("--dump", path), ("--admin", admin))
    ]

    assert (statuses, capsys.readouterr().out) == ([2, 2], SHOWN * 2)


@pytest.mark.parametrize(
    ("dump", "error"),
    [
        ({"workloads": []}, "does not carry enough: it has no services, policies"),
        (ZTUNNEL | {"workloads": [{"uid": "u"}]}, "workloads[0] (uid u): missing key 'namespace'"),
        (ZTUNNEL | {"policies": [{"name": 1}]}, "is it the dump of another version?"),
    ],
)
def test_dump_that_carries_too_little_is_an_error(
    dump: Any, error: str, saved: Callable[[Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(["why", "a/b", "c/d", "--dump", saved(dump)])

    printed = capsys.readouterr()
    assert (status, printed.out) == (1, "")
    assert error in printed.err


def test_file_and_dump_exclude_each_other(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*DENIED, "--state", state, "--dump", state]) == 2
    assert "--state and --dump exclude each other" in capsys.readouterr().err
