# SPDX-License-Identifier: Apache-2.0
"""nghttp and h2load against our inbound side: ordinary requests, all refused, in good order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.foreign.front import TlsFront
from tests.foreign.programs import certificate_files, needed
from tests.support.plane import CLIENT, forward
from tests.support.wait import until
from ztunnel_py.dataplane.abc import Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.foreign.programs import Programs
    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire

PACKAGE = "nghttp2-client"
STREAMS = 50


@pytest.fixture
async def tunnel(server: Plane, net: Net) -> Wire:
    """Another client's tunnel to the same side, which must not notice."""
    app = await net.app()
    server.decide = lambda _: forward(app.address)
    return await net.tunnel(server)


@pytest.fixture
async def front(server: Plane, net: Net) -> AsyncIterator[TlsFront]:
    """TLS with a client's certificate, which h2load has not."""
    front = await TlsFront(server.port(Role.INBOUND), net.certify(CLIENT)).start()
    yield front
    await front.stop()


async def is_serving(tunnel: Wire) -> bool:
    """A CONNECT still works."""
    return await tunnel.status(tunnel.connect()) == 200


def nghttp(server: Plane, net: Net, folder: Path, *options: str) -> list[str]:
    """The command line of nghttp, with a client's certificate."""
    chain, key, _ = certificate_files(folder, net.certify(CLIENT))
    url = f"https://{server.port(Role.INBOUND)}/"
    identity = f"--cert={chain}", f"--key={key}"
    return [needed("nghttp", PACKAGE), "--verbose", "--no-verify-peer", *identity, *options, url]


async def test_many_gets_of_nghttp_get_400_each(
    programs: Programs, server: Plane, net: Net, tunnel: Wire, tmp_path: Path
) -> None:
    said = await programs.run(nghttp(server, net, tmp_path, f"--multiply={STREAMS}"))

    assert said.status == 0, said.text
    assert said.text.count(":status: 400") == STREAMS
    assert "GOAWAY frame" not in received(said.text)
    assert not server.flows
    assert await is_serving(tunnel)


async def test_upload_of_nghttp_gets_400_without_being_read(
    programs: Programs, server: Plane, net: Net, tunnel: Wire, tmp_path: Path
) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(8 << 20))

    said = await programs.run(nghttp(server, net, tmp_path, f"--data={body}"))

    assert ":status: 400" in said.text, said.text
    assert not server.flows
    assert await is_serving(tunnel)


async def test_malformed_connect_of_nghttp_is_reset(
    programs: Programs, server: Plane, net: Net, tunnel: Wire, tmp_path: Path
) -> None:
    # it sends a scheme and a path with it, which CONNECT must not have
    said = await programs.run(nghttp(server, net, tmp_path, "--header=:method: CONNECT"))

    assert "PROTOCOL_ERROR" in received(said.text), said.text
    assert not server.flows
    assert await is_serving(tunnel)


async def test_nghttp_without_a_certificate_is_not_let_in(
    programs: Programs, server: Plane, tunnel: Wire
) -> None:
    url = f"https://{server.port(Role.INBOUND)}/"

    said = await programs.run([needed("nghttp", PACKAGE), "--verbose", "--no-verify-peer", url])

    assert ":status:" not in said.text
    assert await is_serving(tunnel)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_requests_of_h2load_are_all_answered(
    programs: Programs, server: Plane, front: TlsFront, tunnel: Wire, tmp_path: Path, method: str
) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(1000))
    options = ["--requests=2000", "--clients=4", "--max-concurrent-streams=50"]
    if method == "POST":
        options.append(f"--data={body}")
    url = f"http://127.0.0.1:{front.port}/"

    said = await programs.run([needed("h2load", PACKAGE), *options, url])

    counts = re.search(r"requests: (.*)", said.text)
    assert counts is not None, said.text
    assert "2000 done, 0 succeeded, 2000 failed, 0 errored, 0 timeout" in counts[1]
    assert "0 2xx, 0 3xx, 2000 4xx, 0 5xx" in said.text
    assert not server.flows
    assert await is_serving(tunnel)
    await until(lambda: len(server.engine.tunnels()) == 1, "h2load's tunnels to be gone")


def received(verbose: str) -> str:
    """The frames that nghttp heard, with what belongs to each."""
    parts = re.split(r"^\[[ \d.]+\] ", verbose, flags=re.MULTILINE)
    return "".join(part for part in parts if part.startswith("recv"))
