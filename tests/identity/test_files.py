# SPDX-License-Identifier: Apache-2.0
"""Certificates from files: used, reloaded when replaced, and kept when the new ones are broken."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.authority import Authority, uris
from tests.support.clock import FakeClock
from tests.support.wait import settle
from ztunnel_py.config_model import IdentityFiles
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.files import Files
from ztunnel_py.identity.manager import SecretManager
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ztunnel_py.identity.certificates import WorkloadCertificate

CART, PRICES = (Identity("cluster.local", "shop", name) for name in ("cart", "prices"))


class Host:
    """Files, and a manager that keeps what they give."""

    def __init__(self, directory: Path) -> None:
        self.root = Authority("host")
        self.files = IdentityFiles(*(directory / name for name in ("cert", "key", "roots")))
        self.write(self.root.issue(CART))
        self.clock, self.tasks = FakeClock(), Tasks()
        self.source = Files(self.files, self.clock)
        self.manager = SecretManager(self.source, self.clock, self.tasks)
        self.source.start(self.manager.renew)

    def write(self, certificate: WorkloadCertificate) -> None:
        """Replaces all three as a volume does: at once."""
        for path, text in zip(
            self.files,
            (certificate.chain_pem, certificate.key_pem, certificate.roots_pem),
            strict=True,
        ):
            new = path.with_suffix(".new")
            new.write_bytes(text)
            new.rename(path)

    async def look(self) -> None:
        """Two seconds pass."""
        self.clock.advance(2)
        await settle(3)

    async def refusal(self, identity: Identity = CART) -> str:
        with pytest.raises(IdentityError) as failed:
            await self.manager.get(identity)
        return str(failed.value)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def replace(path: Path, content: bytes | None) -> None:
    """Writes a file anew; None removes it."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    yield host
    host.source.stop()
    host.manager.stop()
    assert host.clock.pending == 0
    await host.tasks.stop()


async def test_certificate_in_the_files_is_used(host: Host) -> None:
    certificate = await host.manager.get(CART)

    assert certificate.chain_pem == content_of(host.files.certificate)
    assert certificate.roots_pem == host.root.pem


async def test_replaced_files_are_used_after_two_seconds(host: Host) -> None:
    old = await host.manager.get(CART)
    host.write(host.root.issue(CART))

    assert await host.manager.get(CART) is old
    await host.look()

    assert (await host.manager.get(CART)).chain_pem == content_of(host.files.certificate)


async def test_change_is_told_once_and_no_change_never(host: Host) -> None:
    told: list[Identity] = []

    def renew(identity: Identity) -> bool:
        told.append(identity)
        return True

    source = Files(host.files, host.clock)
    source.start(renew)
    await source.issue(CART)
    for _ in range(5):
        await host.look()
    assert not told

    host.write(host.root.issue(CART))
    for _ in range(5):
        await host.look()
    source.stop()

    assert told == [CART]


@pytest.mark.parametrize(
    ("damaged", "damage"),
    [
        *itertools.product(["certificate"], ["cut", "empty", "gone", "another"]),
        *itertools.product(["key"], ["cut", "empty", "gone", "another"]),
        *itertools.product(["roots"], ["cut", "empty", "gone"]),
    ],
)
async def test_bad_replacement_keeps_the_good_certificate_until_it_is_mended(
    damaged: str, damage: str, host: Host
) -> None:
    good = await host.manager.get(CART)
    path: Path = getattr(host.files, damaged)
    content = content_of(path)
    error = "private key: " if damaged == "key" else "certificate: "
    if damage == "another":
        other = host.root.issue(CART)
        replace(path, other.key_pem if damaged == "key" else other.chain_pem)
    else:
        replace(path, {"cut": content[:100], "empty": b"", "gone": None}[damage])
    await host.look()

    (status,) = host.manager.statuses()
    assert {"gone": "cannot read", "another": "key is not"}.get(damage, error) in status.error
    assert await host.manager.get(CART) == good

    replace(path, content)
    await host.look()
    (status,) = host.manager.statuses()
    assert (status.error, status.certificate) == ("", good)


async def test_certificate_of_somebody_else_is_refused(host: Host) -> None:
    assert f"cert is of {CART}" in await host.refusal(PRICES)


async def test_files_that_come_late_are_found(host: Host) -> None:
    for path in host.files:
        replace(path, None)
    assert "cannot read" in await host.refusal()

    host.write(host.root.issue(CART))
    await host.look()

    assert (await host.manager.get(CART)).identity == CART


async def test_half_expired_certificate_is_used_while_new_files_are_awaited(host: Host) -> None:
    """As of a host whose renewal is late."""
    leaf = dataclasses.replace(uris(str(CART)), ends_in=timedelta(hours=1))
    issued = host.root.issue(CART, leaf)  # which has been valid for a day

    host.write(issued)
    certificate = await host.manager.get(CART)
    await host.look()

    assert certificate == issued
    assert await host.manager.get(CART) is certificate
