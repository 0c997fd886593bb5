# SPDX-License-Identifier: Apache-2.0
"""The file of revocation lists comes, changes, breaks and goes, and the engine follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.authority import Authority, crl_pem
from tests.support.clock import FakeClock
from tests.support.plane import CLIENT, SERVER, forward
from tests.support.tls import tls_context
from tests.support.wait import until
from ztunnel_py.dataplane.abc import RecordKind, Role
from ztunnel_py.dataplane.revocations import LOOK_S, Revocations
from ztunnel_py.errors import Flag, Reason
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.net import Net
    from tests.support.plane import Plane
    from tests.support.wire import Wire
    from ztunnel_py.identity.certificates import WorkloadCertificate

ROOT = Authority()
BAD, GOOD = ROOT.issue(CLIENT), ROOT.issue(CLIENT)
NOBODY, LIST = crl_pem(ROOT.crl()), crl_pem(ROOT.crl(BAD))
NOTICED_S = 3 * LOOK_S
"""After that, a change is in force."""


class Follower:
    """An engine that follows a file."""

    def __init__(self, plane: Plane, net: Net, path: Path, tasks: Tasks) -> None:
        self.plane = plane
        self.path = path
        self._net = net
        self._tasks = tasks
        self._clock = FakeClock()

    async def start(self) -> None:
        """Begins to follow."""
        await Revocations(self.plane.engine, self.path, self._clock, self._tasks).start()

    async def pass_time(self, seconds: float = NOTICED_S) -> None:
        """Lets it look, and do what it then does."""
        for _ in range(int(seconds / LOOK_S)):
            await self._is_waiting()
            self._clock.advance(LOOK_S)
        await self._is_waiting()

    def replace(self, content: bytes) -> None:
        """Puts another file in the place of this one, in one step."""
        new = self.path.with_suffix(".new")
        new.write_bytes(content)
        new.rename(self.path)

    async def lets_in(self, certificate: WorkloadCertificate) -> bool:
        """Whether a client with that certificate gets a tunnel."""
        tunnel = await self.call(certificate)
        before = len(self.plane.of(RecordKind.DENIED))
        tunnel.say(tunnel.make.ping(b"are you?"))
        await until(
            lambda: bool(tunnel.frames) or len(self.plane.of(RecordKind.DENIED)) > before,
            "an answer",
        )
        return bool(tunnel.frames)

    async def call(self, certificate: WorkloadCertificate) -> Wire:
        """A client's connection after its side of the handshake."""
        context = tls_context(certificate, is_server=False, trusts_all=True)
        to = self.plane.port(Role.INBOUND)
        tunnel = await self._net.raw_tunnel(to, context=context)
        tunnel.greet()
        return tunnel

    async def _is_waiting(self) -> None:
        await until(lambda: self._clock.pending == 1, "it to wait for the next look")


@pytest.fixture
async def follower(server: Plane, net: Net, tmp_path: Path) -> AsyncIterator[Follower]:
    """A server that follows a file, which is not there yet."""
    server.certificate = ROOT.issue(SERVER)
    tasks = Tasks()
    yield Follower(server, net, tmp_path / "ca-crl.pem", tasks)
    await tasks.stop()


# --- at the start


async def test_list_that_is_there_counts_from_the_first_handshake(follower: Follower) -> None:
    follower.replace(LIST)

    await follower.start()

    assert not await follower.lets_in(BAD)
    assert await follower.lets_in(GOOD)


@pytest.mark.spec("ops-53")
async def test_empty_file_revokes_nobody(
    follower: Follower, capfd: pytest.CaptureFixture[str]
) -> None:
    follower.replace(b"")

    await follower.start()

    assert await follower.lets_in(BAD)
    assert "\twarn\t" not in capfd.readouterr().err


@pytest.mark.spec("ops-53")
async def test_garbage_is_warned_of_and_revokes_nobody(
    follower: Follower, capfd: pytest.CaptureFixture[str]
) -> None:
    follower.replace(b"garbage")

    await follower.start()

    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "\twarn\t" in line]
    assert "revocation lists cannot be used" in warning
    assert str(follower.path) in warning
    assert await follower.lets_in(BAD)


@pytest.mark.spec("ops-54")
async def test_file_that_appears_later_counts_without_a_restart(
    follower: Follower, capfd: pytest.CaptureFixture[str]
) -> None:
    await follower.start()
    assert "\twarn\t" in capfd.readouterr().err
    assert await follower.lets_in(BAD)

    follower.replace(LIST)
    await follower.pass_time()

    assert not await follower.lets_in(BAD)


async def test_directory_that_appears_later_is_found(follower: Follower, tmp_path: Path) -> None:
    follower.path = tmp_path / "mounted" / "later" / "ca-crl.pem"
    await follower.start()

    follower.path.parent.mkdir(parents=True)
    follower.replace(LIST)
    await follower.pass_time()

    assert not await follower.lets_in(BAD)


# --- changes


@pytest.mark.spec("ops-55")
@pytest.mark.spec("dataplane-101")
async def test_connection_of_a_client_that_becomes_revoked_ends_within_three_seconds(
    follower: Follower, net: Net
) -> None:
    app = await net.app()
    follower.plane.decide = lambda _: forward(app.address, reporter="destination")
    follower.replace(NOBODY)
    await follower.start()
    doomed, other = await follower.call(BAD), await follower.call(GOOD)
    for tunnel in (doomed, other):
        assert await tunnel.status(tunnel.connect(authority=str(app.address))) == 200

    follower.replace(LIST)
    await follower.pass_time(3)

    record = await follower.plane.closed()
    assert (record.reason, record.src) == (Reason.CERT_REVOKED, doomed.local)
    assert record.reason.flag is Flag.CERT_REVOKED
    await doomed.closed()
    await other.fence()
    (view,) = follower.plane.engine.connections()
    assert view.src == other.local


@pytest.mark.spec("ops-56")
@pytest.mark.parametrize(
    "content",
    [b"garbage", LIST[: len(LIST) // 2], LIST + LIST[:-20]],
    ids=["garbage", "half", "one and a half"],
)
async def test_good_list_replaced_by_a_broken_one_stays_in_force(
    follower: Follower, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    follower.replace(LIST)
    await follower.start()

    follower.replace(content)
    await follower.pass_time()

    assert "revocation lists cannot be used" in capfd.readouterr().err
    assert not await follower.lets_in(BAD)


async def test_list_that_goes_stays_in_force(follower: Follower) -> None:
    follower.replace(LIST)
    await follower.start()

    follower.path.unlink()
    await follower.pass_time()

    assert not await follower.lets_in(BAD)


async def test_file_that_is_being_written_is_left_alone(
    follower: Follower, capfd: pytest.CaptureFixture[str]
) -> None:
    follower.replace(LIST)
    await follower.start()
    longer = crl_pem(ROOT.crl(BAD, GOOD))
    piece = len(longer) // 5

    for end in range(0, len(longer), piece):  # begins with an empty file, which revokes nobody
        follower.path.write_bytes(longer[:end])
        await follower.pass_time(LOOK_S)
        assert not await follower.lets_in(BAD)
    follower.path.write_bytes(longer)
    await follower.pass_time()

    assert not await follower.lets_in(GOOD)
    assert "cannot be used" not in capfd.readouterr().err


async def test_links_that_are_swapped_as_kubernetes_does_are_followed(
    follower: Follower, tmp_path: Path
) -> None:
    for version, content in (("one", NOBODY), ("two", LIST)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "ca-crl.pem").write_bytes(content)
    (tmp_path / "..data").symlink_to("one")
    follower.path.symlink_to("..data/ca-crl.pem")
    await follower.start()
    assert await follower.lets_in(BAD)

    (tmp_path / "..next").symlink_to("two")
    (tmp_path / "..next").rename(tmp_path / "..data")
    await follower.pass_time()

    assert not await follower.lets_in(BAD)


async def test_garbage_at_the_start_does_not_spoil_what_comes_later(follower: Follower) -> None:
    follower.replace(b"garbage")
    await follower.start()

    follower.replace(LIST)
    await follower.pass_time()

    assert not await follower.lets_in(BAD)


async def test_file_that_does_not_change_is_read_once(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    engine = follower.plane.engine
    use = engine.revocations_set

    async def counted(lists: tuple[bytes, ...]) -> int:
        used.append(len(lists))
        return await use(lists)

    monkeypatch.setattr(engine, "revocations_set", counted)
    follower.replace(LIST)
    await follower.start()

    await follower.pass_time(10 * LOOK_S)
    assert used == [1]

    follower.replace(LIST + LIST)
    await follower.pass_time()
    assert used == [1, 2]
