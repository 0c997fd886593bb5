# SPDX-License-Identifier: Apache-2.0
"""The stats server."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.admin.conftest import client_of
from ztunnel_py.admin.stats import stats_server
from ztunnel_py.telemetry.metrics import families, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.admin.http import HttpServer
    from ztunnel_py.dataplane.counters import SlotCounts
    from ztunnel_py.decide.verdict import TrafficLabels

_LOOPBACK = (("127.0.0.1", 0),)
_OPENMETRICS = "application/openmetrics-text;charset=utf-8;version=1.0.0"
_PLAIN = "text/plain; charset=utf-8"


class _IdlePlane:
    """An engine without traffic."""

    def slots(self) -> Mapping[TrafficLabels, SlotCounts]:
        return {}

    def events(self) -> Mapping[str, int]:
        return {}


def _server() -> HttpServer:
    return stats_server(lambda: render(families(_IdlePlane(), "1.99")), _LOOPBACK)


@pytest.mark.spec("ops-106")
@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        ({}, _PLAIN),
        ({"Accept": "application/json"}, _PLAIN),
        ({"Accept": "text/html,Application/OpenMetrics-Text;version=1.0.0;q=0.5"}, _OPENMETRICS),
        ({"Accept": "text/html, application/openmetrics-text"}, _PLAIN),  # the blank counts
    ],
)
async def test_content_type_follows_accept_and_the_body_ends_with_eof(
    headers: dict[str, str], content_type: str
) -> None:
    async with client_of(_server()) as client:
        reply = await client.ask("/metrics", headers=headers)

    assert (reply.status, reply.content_type) == (200, content_type)
    assert reply.body.endswith(b"# EOF\n")


@pytest.mark.spec("ops-107")
async def test_gzip_is_used_where_accepted() -> None:
    async with client_of(_server()) as client:
        reply = await client.ask("/metrics", headers={"Accept-Encoding": "br, deflate, gzip"})

    assert reply.coding == "gzip"
    assert gzip.decompress(reply.body).endswith(b"# EOF\n")


async def test_deflate_is_used_where_preferred() -> None:
    headers = {"Accept-Encoding": "gzip;q=0.1, deflate;q=0.9"}
    async with client_of(_server()) as client:
        reply = await client.ask("/metrics", headers=headers)

    assert reply.coding == "deflate"
    assert zlib.decompress(reply.body).endswith(b"# EOF\n")


@pytest.mark.parametrize("accepted", ["identity", "gzip;q=0", "br", "gzip;q=x"])
async def test_nothing_else_compresses(accepted: str) -> None:
    async with client_of(_server()) as client:
        reply = await client.ask("/metrics", headers={"Accept-Encoding": accepted})

    assert reply.coding == ""


@pytest.mark.spec("ops-108")
async def test_fresh_start_shows_the_build_and_no_empty_family() -> None:
    async with client_of(_server()) as client:
        reply = await client.ask("/stats/prometheus", "POST")

    text = reply.body.decode()
    assert 'istio_build{component="ztunnel",tag="1.99"} 1\n' in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")] == [
        "process_open_fds",
        "process_max_fds",
        "istio_build",
    ]


async def test_other_paths_are_404() -> None:
    async with client_of(_server()) as client:
        assert (await client.ask("/")).status == 404
