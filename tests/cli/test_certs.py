# SPDX-License-Identifier: Apache-2.0
"""The command that shows certificates."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.dumps import ZTUNNEL
from tests.support.authority import Authority, uris
from ztunnel_py.__main__ import run
from ztunnel_py.admin.dump import dump_certificates
from ztunnel_py.admin.http import Answer, HttpServer
from ztunnel_py.admin.server import admin_server
from ztunnel_py.cli.certs import remaining_s
from ztunnel_py.identity.manager import CertificateState, CertificateStatus
from ztunnel_py.identity.spiffe import Identity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CART, PRICES = (Identity("cluster.local", "shop", name) for name in ("cart", "prices"))
HOURLY = replace(uris(str(CART)), ends_in=timedelta(hours=1))
"""What the test authority issues has been valid for a day."""
STATUSES = dump_certificates(
    [
        CertificateStatus(CART, CertificateState.AVAILABLE, Authority().issue(CART, HOURLY), ""),
        CertificateStatus(PRICES, CertificateState.UNAVAILABLE, None, "the authority is down"),
    ]
)


@pytest.fixture
async def admin() -> AsyncIterator[str]:
    """Where a proxy's admin server is."""
    server = admin_server(
        lambda: {"certificates": STATUSES},
        lambda: None,
        (("127.0.0.1", 0),),
        list,
        list,
    )
    await server.open()
    yield "{}:{}".format(*server.address)
    await server.close()


async def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, str]]:
    """The rows of the table."""
    assert await asyncio.to_thread(run, ["certs", *argv]) == 0
    head, *rows = (
        [cell.strip() for cell in line.split("  ") if cell]
        for line in capsys.readouterr().out.splitlines()
    )
    return [dict(zip(head, row, strict=True)) for row in rows]


async def test_certificates_are_a_table(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    cart, prices = await shown(capsys, "--admin", admin)

    serial = STATUSES[0]["certChain"][0]["serialNumber"]
    assert cart == {
        "IDENTITY": str(CART),
        "EXPIRES": cart["EXPIRES"],
        "AGE": "1d00h",
        "SERIAL": serial,
        "ROOTS": "1",
        "STATE": "Available",
    }
    assert re.fullmatch(r"in (1h00m|[45]\dm\d\ds)", cart["EXPIRES"])
    assert prices == {
        "IDENTITY": str(PRICES),
        "EXPIRES": "-",
        "AGE": "-",
        "SERIAL": "-",
        "ROOTS": "0",
        "STATE": "Unavailable: the authority is down",
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--expiring", "2h"), [str(CART), str(PRICES)]),
        (("--expiring", "30m"), [str(PRICES)]),
        (("--identity", "sa/cart"), [str(CART)]),
        (("--identity", "nobody"), []),
    ],
)
async def test_some_can_be_picked(
    options: tuple[str, ...], names: list[str], admin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = await shown(capsys, "--admin", admin, *options)

    assert [row["IDENTITY"] for row in rows] == names


async def test_json_has_everything(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = await asyncio.to_thread(run, ["certs", "--json", "--admin", admin])

    assert status == 0
    assert json.loads(capsys.readouterr().out) == STATUSES


async def test_dump_of_ztunnel_is_read(
    capsys: pytest.CaptureFixture[str], saved: Callable[[Any], str]
) -> None:
    cart, prices = await shown(capsys, "--dump", saved(ZTUNNEL))

    assert cart["EXPIRES"].endswith(" ago")
    assert (cart["SERIAL"], cart["STATE"]) == ("271676055104", "Available")
    assert prices["STATE"].startswith("Unavailable: signing gRPC error")


async def test_what_is_no_certificate_is_shown_as_absent(
    capsys: pytest.CaptureFixture[str], saved: Callable[[Any], str]
) -> None:
    strange = [{"identity": 7, "certChain": [{"expirationTime": "soon", "validFrom": []}]}]

    (row,) = await shown(capsys, "--dump", saved({"certificates": strange}))

    assert row == {
        "IDENTITY": "7",
        "EXPIRES": "-",
        "AGE": "-",
        "SERIAL": "-",
        "ROOTS": "0",
        "STATE": "-",
    }


def test_expired_certificate_says_since_when() -> None:
    assert remaining_s(STATUSES[0], time.time() + 7200) < 0


@pytest.mark.parametrize("text", ["soon", "6 parsecs", ""])
def test_time_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["certs", "--expiring", text]) == 2
    assert "--expiring" in capsys.readouterr().err


async def test_what_is_no_proxy_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    server = HttpServer("test", (("127.0.0.1", 0),), {"/config_dump": lambda _: Answer(200, "[]")})
    await server.open()
    host, port = server.address

    status = await asyncio.to_thread(run, ["certs", "--admin", f"{host}:{port}"])
    await server.close()

    assert status == 1
    assert "is not such a proxy" in capsys.readouterr().err
