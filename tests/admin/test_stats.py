# SPDX-License-Identifier: Apache-2.0
"""The stats server."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import zlib
from typing import TYPE_CHECKING

import brotli
import pytest
import zstandard

from tests.admin.conftest import client_of
from tests.support.wait import until
from ztunnel_py.admin.stats import Scrapes, stats_server
from ztunnel_py.telemetry import metrics, usage
from ztunnel_py.telemetry.exposition import lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ztunnel_py.admin.http import HttpServer

_LOOPBACK = (("127.0.0.1", 0),)
_OPENMETRICS = "application/openmetrics-text;charset=utf-8;version=1.0.0"
_PLAIN = "text/plain; charset=utf-8"
_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": zstandard.ZstdDecompressor().decompress,
}


def _server() -> HttpServer:
    async def fresh() -> Iterator[str | None]:
        return lines([*usage.families(usage.read()), metrics.build("1.99")])

    return stats_server(fresh, _LOOPBACK)


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
@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("br, deflate, gzip", "gzip"),
        ("gzip;q=0.1, deflate;q=0.9", "deflate"),
        ("br", "br"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0, br;q=0.5, gzip;q=0.4", "br"),
    ],
)
async def test_the_coding_that_is_liked_best_is_used(accepted: str, coding: str) -> None:
    async with client_of(_server()) as client:
        reply = await client.ask("/metrics", headers={"Accept-Encoding": accepted})

    assert reply.coding == coding
    assert _DECODERS[coding](reply.body).endswith(b"# EOF\n")


@pytest.mark.parametrize("accepted", ["identity", "gzip;q=0", "lzma", "gzip;q=x"])
async def test_nothing_else_compresses(accepted: str) -> None:
    async with client_of(_server()) as client:
        reply = await client.ask("/metrics", headers={"Accept-Encoding": accepted})

    assert reply.coding == ""
    assert reply.body.endswith(b"# EOF\n")


@pytest.mark.spec("ops-108")
async def test_fresh_start_shows_the_build_and_no_empty_family() -> None:
    async with client_of(_server()) as client:
        reply = await client.ask("/stats/prometheus", "POST")

    text = reply.body.decode()
    assert 'istio_build{component="ztunnel",tag="1.99"} 1\n' in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")] == [
        "process_open_fds",
        "process_max_fds",
        "process_cpu_seconds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "istio_build",
    ]


async def test_other_paths_are_404() -> None:
    async with client_of(_server()) as client:
        assert (await client.ask("/")).status == 404


async def test_others_are_served_while_a_long_text_is_made() -> None:
    n_turns, is_over = 0, False

    def others() -> None:
        nonlocal n_turns
        n_turns += 1
        if not is_over:
            asyncio.get_running_loop().call_soon(others)

    async def endless() -> Iterator[str | None]:
        """Ends once others have had ten turns, which they get only between slices."""
        enough = n_turns + 10
        return itertools.takewhile(lambda _: n_turns < enough, itertools.repeat(None))

    async with client_of(stats_server(endless, _LOOPBACK)) as client:
        others()
        reply = await client.ask("/metrics")
    is_over = True

    assert reply.status == 200


async def test_scrapes_that_come_together_share_one_text() -> None:
    n_made, release = 0, asyncio.Event()

    async def counted() -> Iterator[str | None]:
        nonlocal n_made
        n_made += 1
        await release.wait()
        return iter([f"{n_made}\n"])

    scrapes = Scrapes(counted)
    together = [asyncio.ensure_future(scrapes.body(coding)) for coding in ("", "", "gzip", "gzip")]
    await until(lambda: n_made == 1, "the first scrape")
    release.set()
    plain, again, zipped, zipped_again = await asyncio.gather(*together)
    later = await scrapes.body("")

    assert (plain, again) == (b"1\n", b"1\n")
    assert gzip.decompress(zipped) == plain
    assert zipped_again is zipped
    assert later == b"2\n"


async def test_a_long_answer_arrives_whole() -> None:
    text = "".join(f"x{number} 1\n" for number in range(300_000))

    async def long() -> Iterator[str | None]:
        return iter([text])

    async with client_of(stats_server(long, _LOOPBACK)) as client:
        reply = await client.ask("/metrics")

    assert reply.body == text.encode()
