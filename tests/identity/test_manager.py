# SPDX-License-Identifier: Apache-2.0
"""One certificate per identity, fetched once, in the order of need, and renewed in time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.support.clock import FakeClock
from tests.support.wait import settle, until
from ztunnel_py.identity.backoff import Backoff
from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.certificates import WorkloadCertificate
from ztunnel_py.identity.manager import CertificateState, Priority, SecretManager
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CART, PRICES = (Identity("cluster.local", "shop", name) for name in ("cart", "prices"))
LIFE = 100_000.0
START = 1_800_000_000.0
AVERAGE = 0.5
"""What is drawn: no jitter."""


class ScriptedCa:
    """Issues numbered certificates while its gate is open, unless told to fail."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.asked: list[Identity] = []
        self.asked_at: list[float] = []
        self.failures: dict[Identity | None, str] = {}
        """By identity; None is everybody."""
        self.same: WorkloadCertificate | None = None
        """Given whatever is asked for."""
        self.life = LIFE
        self.ahead = 0.0
        """How far the authority's clock is ahead of ours."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.in_flight = self.most_in_flight = 0

    @property
    def now(self) -> float:
        """Our time."""
        return START + self._clock.now() - 1000

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """As `CertificateAuthority`."""
        self.asked.append(identity)
        self.asked_at.append(self.now - START)
        number = b"%d" % len(self.asked)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.gate.wait()
        finally:
            self.in_flight -= 1
        failure = self.failures.get(identity) or self.failures.get(None)
        if failure is not None:
            raise IdentityError(failure)
        if self.same is not None:
            return self.same
        begin = self.now + self.ahead
        return WorkloadCertificate(identity, number, b"", b"", begin, begin + self.life)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ca(clock: FakeClock) -> ScriptedCa:
    return ScriptedCa(clock)


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
async def manager(ca: ScriptedCa, clock: FakeClock, tasks: Tasks) -> AsyncIterator[SecretManager]:
    made = SecretManager(ca, clock, tasks, lambda: START, lambda: AVERAGE)
    yield made
    made.stop()
    assert clock.pending == 0
    await tasks.stop()


async def advance(clock: FakeClock, seconds: float) -> None:
    """Moves time on in steps that let each fetch end before the next is due."""
    end = clock.now() + seconds
    while clock.now() < end:
        clock.advance(min(0.5, end - clock.now()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def jump(clock: FakeClock, seconds: float) -> None:
    """Moves time on at once, and lets what became due end."""
    clock.advance(seconds)
    await settle(5)


async def unavailable(manager: SecretManager, identity: Identity = CART) -> str:
    """Why there is no certificate."""
    with pytest.raises(IdentityError) as failed:
        await manager.get(identity)
    return str(failed.value)


def many(count: int) -> list[Identity]:
    return [Identity("cluster.local", "many", f"{number:04}") for number in range(count)]


def asking(
    manager: SecretManager,
    identities: list[Identity],
    priority: Priority = Priority.REAL_TIME,
) -> list[asyncio.Future[WorkloadCertificate]]:
    return [asyncio.ensure_future(manager.get(one, priority)) for one in identities]


# --- one fetch for all


@pytest.mark.spec("ops-15")
async def test_concurrent_askers_share_one_fetch(ca: ScriptedCa, manager: SecretManager) -> None:
    ca.gate.clear()
    askers = asking(manager, [CART] * 10)
    await settle(2)
    assert manager.statuses()[0].state is CertificateState.INITIALIZING

    ca.gate.set()
    certificates = await asyncio.gather(*askers)

    assert len(ca.asked) == 1
    assert all(certificate is certificates[0] for certificate in certificates)


async def test_asker_that_gives_up_does_not_end_the_fetch_of_others(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    first, second = asking(manager, [CART, CART])
    await settle(2)

    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    ca.gate.set()

    assert (await second).identity == CART
    assert len(ca.asked) == 1


@pytest.mark.spec("ops-16")
async def test_no_more_than_eight_are_fetched_at_once(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    askers = asking(manager, many(20))
    await until(lambda: ca.in_flight == 8, "eight fetches")
    await settle(2)

    ca.gate.set()
    await asyncio.gather(*askers)

    assert ca.most_in_flight == 8
    assert sorted(ca.asked) == many(20)


# --- who comes first


@pytest.mark.spec("ops-17")
async def test_whom_a_connection_waits_for_comes_before_whom_somebody_will_need(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    early = asking(manager, many(8), Priority.WARM_UP)
    await until(lambda: ca.in_flight == 8, "all slots taken")
    early += asking(manager, many(20)[8:], Priority.WARM_UP)
    early += asking(manager, [CART])
    await settle(2)

    ca.gate.set()
    await asyncio.gather(*early)

    assert ca.asked[8] == CART


@pytest.mark.spec("ops-18")
async def test_identity_in_the_queue_moves_forward_when_a_connection_waits_for_it(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    early = asking(manager, many(20), Priority.WARM_UP)
    await until(lambda: ca.in_flight == 8, "all slots taken")
    last = many(20)[-1]
    early += asking(manager, [last])
    await settle(2)

    ca.gate.set()
    await asyncio.gather(*early)

    assert ca.asked[8] == last
    assert sorted(ca.asked) == many(20)


async def test_among_equals_the_first_comes_first(ca: ScriptedCa, manager: SecretManager) -> None:
    await asyncio.gather(*asking(manager, many(20), Priority.WARM_UP))

    assert ca.asked == many(20)


# --- renewal


@pytest.mark.spec("ops-19")
async def test_certificate_is_renewed_at_half_its_life_though_nobody_asks(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    fresh: list[bytes] = []
    manager.follow(lambda certificate: fresh.append(certificate.chain_pem))
    await manager.get(CART)

    await jump(clock, LIFE / 2 - 1)
    assert fresh == [b"1"]
    await jump(clock, 1)

    assert fresh == [b"1", b"2"]
    assert (await manager.get(CART)).chain_pem == b"2"


async def test_old_certificate_serves_while_a_new_one_is_fetched(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    old = await manager.get(CART)
    ca.gate.clear()
    await jump(clock, LIFE / 2)
    assert ca.in_flight == 1

    assert await manager.get(CART) is old


@pytest.mark.spec("ops-20")
async def test_failed_renewal_keeps_the_certificate(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    old = await manager.get(CART)
    ca.failures[None] = "no"

    await jump(clock, LIFE - 1)

    assert await manager.get(CART) is old
    (status,) = manager.statuses()
    assert (status.state, status.error) == (CertificateState.AVAILABLE, "no")


@pytest.mark.spec("ops-24")
async def test_one_try_is_at_the_expiry_after_which_there_is_none(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    ca.life = 2000.0
    await manager.get(CART)
    ca.failures[None] = "no"

    await advance(clock, 2000)

    assert ca.asked_at[-3:] == [1705, 1855, 2000]
    assert manager.statuses()[0].state is CertificateState.UNAVAILABLE
    assert await unavailable(manager) == "no"


async def test_expired_certificate_is_not_given_out_while_the_last_try_runs(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    await manager.get(CART)
    ca.gate.clear()

    await jump(clock, LIFE)

    assert "the certificate expired at 2027-01-16T11:46:40Z" in await unavailable(manager)


async def test_authority_that_gives_half_expired_certificates_is_not_asked_in_a_loop(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    ca.ahead, ca.life = -60.0, 100.0
    await manager.get(CART)

    await advance(clock, 16)

    assert ca.asked_at == [0, 1, 3, 7, 15]


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_clocks_that_differ_by_an_hour_are_borne(
    ahead: float, ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    ca.ahead = ahead
    assert (await manager.get(CART)).chain_pem == b"1"

    await jump(clock, ahead + LIFE / 2 - 1)
    assert len(ca.asked) == 1
    await jump(clock, 1)

    assert len(ca.asked) == 2


async def test_certificate_that_has_expired_on_arrival_is_refused_and_points_to_the_clock(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.ahead, ca.life = -3600.0, 1800.0

    assert "already expired; does this node's clock agree" in await unavailable(manager)


# --- failures


@pytest.mark.spec("ops-21", "ops-22")
async def test_retries_double_and_are_steady_after_a_quarter_of_an_hour(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    ca.failures[None] = "no"
    await unavailable(manager)

    await advance(clock, 1500)

    gaps = [late - early for early, late in zip(ca.asked_at, ca.asked_at[1:], strict=False)]
    assert gaps == [1, 2, 4, 8, 16, 32, 64, 128, *[150] * (len(gaps) - 8)]
    assert sum(gaps) > 900


@pytest.mark.parametrize(("drawn", "share"), [(0.0, 0.8), (0.25, 0.9), (1.0, 1.2)])
def test_delays_are_spread_until_they_are_steady(drawn: float, share: float) -> None:
    backoff = Backoff(0.0, lambda: drawn)
    bases = [1, 2, 4, 8, 16, 32, 64, 128, 150]

    delays, now = [], 0.0
    for _ in bases:
        delays.append(backoff.delay(now))
        now += delays[-1]

    assert delays == pytest.approx([base * share for base in bases])
    assert backoff.delay(901.0) == 150.0


@pytest.mark.parametrize(("now", "delay"), [(898.9, 1.0), (899.1, 150.0)])
def test_delay_that_would_end_after_a_quarter_of_an_hour_is_steady(
    now: float, delay: float
) -> None:
    assert Backoff(0.0, lambda: AVERAGE).delay(now) == delay


@pytest.mark.spec("ops-23")
async def test_success_begins_delays_anew(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    ca.failures[None] = "no"
    await unavailable(manager)
    await advance(clock, 8)
    ca.failures.clear()
    await advance(clock, 8)
    assert (await manager.get(CART)).chain_pem == b"5"
    ca.failures[None] = "no"

    await jump(clock, LIFE / 2 - 1)
    await advance(clock, 3)

    assert ca.asked_at[5:7] == [15 + LIFE / 2, 16 + LIFE / 2]


@pytest.mark.spec("ops-25")
async def test_failure_is_answered_at_once_until_a_try_succeeds(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    ca.failures[None] = f"chain returned from CA is empty for: {CART}"
    errors = {await unavailable(manager) for _ in range(3)}
    (status,) = manager.statuses()
    assert errors == {status.error} == {f"chain returned from CA is empty for: {CART}"}
    assert (len(ca.asked), status.state) == (1, CertificateState.UNAVAILABLE)

    ca.failures.clear()
    await jump(clock, 1)

    assert (await manager.get(CART)).chain_pem == b"2"
    assert manager.statuses()[0].state is CertificateState.AVAILABLE


@pytest.mark.spec("ops-26")
async def test_failure_of_one_identity_delays_no_other(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock
) -> None:
    ca.failures[CART] = "no"
    await unavailable(manager)
    await advance(clock, 100)

    assert (await manager.get(PRICES)).identity == PRICES


async def test_whatever_goes_wrong_is_tried_again(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Identity) -> WorkloadCertificate:
        raise RuntimeError("oops")

    with monkeypatch.context() as patched:
        patched.setattr(ca, "issue", broken)
        assert "oops" in await unavailable(manager)

    await jump(clock, 1)

    assert (await manager.get(CART)).identity == CART


async def test_each_error_is_logged_once_and_recovery_too(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock, logged: Callable[[], str]
) -> None:
    ca.failures[None] = "no"
    await unavailable(manager)
    await advance(clock, 10)
    ca.failures[None] = "still no"
    await advance(clock, 10)
    ca.failures.clear()
    await advance(clock, 30)

    said = [line.split("\t", 3)[3].strip() for line in logged().splitlines()]
    failed = "certificate fetch failed and there is no valid one"
    assert said == [
        f"{failed}\tid={CART} error=no",
        f"{failed}\tid={CART} error=still no",
        f"certificate fetched after failures\tid={CART}",
    ]
    assert manager.statuses()[0].n_failures == 5


async def test_overdue_renewal_is_warned_about_once(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock, logged: Callable[[], str]
) -> None:
    await manager.get(CART)
    ca.failures[None] = "no"

    await jump(clock, LIFE * 0.74)
    assert "overdue" not in logged()
    for _ in range(5):
        await jump(clock, LIFE * 0.04)

    assert logged().count("certificate renewal is overdue; it expires at 2027-01-16T11:46:40Z") == 1


async def test_authority_that_has_nothing_newer_is_overdue_as_well(
    ca: ScriptedCa, manager: SecretManager, clock: FakeClock, logged: Callable[[], str]
) -> None:
    same = await manager.get(CART)
    ca.same = same

    await jump(clock, LIFE * 0.8)

    assert "renewal is overdue" in logged()
    assert await manager.get(CART) is same


# --- forgetting


@pytest.mark.spec("ops-27")
async def test_forgotten_identity_is_told_to_who_waits_and_leaves_no_trace(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    (asker,) = asking(manager, [CART])
    await until(lambda: ca.in_flight == 1, "the fetch")

    manager.forget(CART)

    with pytest.raises(IdentityError, match="the identity is no longer needed"):
        await asker
    ca.gate.set()
    await until(lambda: ca.in_flight == 0, "the end of the fetch")
    assert manager.statuses() == []


async def test_result_is_used_if_the_identity_is_needed_again_meanwhile(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    first = asking(manager, [CART])
    await until(lambda: ca.in_flight == 1, "the fetch")
    manager.forget(CART)
    (again,) = asking(manager, [CART])
    await settle(2)

    ca.gate.set()

    assert (await again).chain_pem == b"1"
    assert len(ca.asked) == 1
    with pytest.raises(IdentityError):
        await first[0]


async def test_forgotten_identity_is_fetched_anew(ca: ScriptedCa, manager: SecretManager) -> None:
    await manager.get(CART)

    manager.forget(CART)
    manager.forget(PRICES)

    assert manager.statuses() == []
    assert (await manager.get(CART)).chain_pem == b"2"


async def test_forgotten_identity_in_the_queue_is_not_fetched(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    askers = asking(manager, [*many(8), CART])
    await until(lambda: ca.in_flight == 8, "all slots taken")

    manager.forget(CART)
    ca.gate.set()
    await asyncio.gather(*askers, return_exceptions=True)

    assert CART not in ca.asked


# --- an authority that knows when it has something new


async def test_renewal_may_be_asked_for_early(ca: ScriptedCa, manager: SecretManager) -> None:
    await manager.get(CART)

    assert manager.renew(CART)
    assert not manager.renew(PRICES)
    await settle(2)

    assert (await manager.get(CART)).chain_pem == b"2"
    assert ca.asked == [CART, CART]


async def test_what_is_new_while_a_fetch_runs_is_fetched_after_it(
    ca: ScriptedCa, manager: SecretManager
) -> None:
    ca.gate.clear()
    (asker,) = asking(manager, [CART])
    await until(lambda: ca.in_flight == 1, "the fetch")

    manager.renew(CART)
    manager.renew(CART)
    ca.gate.set()
    await asker
    await settle(2)

    assert (await manager.get(CART)).chain_pem == b"2"
    assert len(ca.asked) == 2


async def test_nothing_is_fetched_any_more_once_it_is_stopped(
    ca: ScriptedCa, manager: SecretManager, tasks: Tasks
) -> None:
    ca.gate.clear()
    askers = asking(manager, many(20))
    await until(lambda: ca.in_flight == 8, "eight fetches")

    manager.stop()
    await tasks.stop()

    assert len(ca.asked) == 8
    for asker in askers:
        asker.cancel()
