"""What becomes of help, for every way in which a helper can end, and of a leader that has help."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from api.jobs.ledger import LedgerUnavailable
from api.jobs.meters import ATTEMPTS, HELP, UNIT_SECONDS, key_of
from api.jobs.record import Claim
from api.jobs.seats import LEADER, Place, UnitReservation
from api.jobs.state import JobState
from tests.support.claims import claim_job
from tests.worker.conftest import FAKE_SOLVE, Bench
from worker.execution import Services
from worker.helping import help_job
from worker.lease import Seat
from worker.protocol import Answer, Held
from worker.unit_reservations import UnitReservations

READY = ["curve.0", "curve.1", "curve.2"]


class Led:
    """A job that another worker leads and that wants help."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.job_id = bench.submit(max_workers=3)
        claim = claim_job(bench.ledger, self.job_id, "leader", 60)
        assert isinstance(claim, Claim)
        self.claim = claim
        self.lead(*READY)

    def lead(self, *ready: str) -> UnitReservation:
        """The leader's next claim of a unit."""
        return self.bench.ledger.seats.reserve_unit(self.job_id, self.claim.fence, LEADER, ready)

    def help(self, behaviour: str) -> None:
        """Answer a call for help with a solve that behaves like that."""
        services = Services(self.bench.ledger, self.bench.journal, self.bench.doorbell)
        solve = (sys.executable, "-S", str(FAKE_SOLVE), behaviour)
        bench = self.bench
        help_job(self.job_id, services, bench.settings, bench.drain, bench.scratch(), solve)
        self.bench.join()

    @property
    def workers(self) -> int:
        return self.bench.job(self.job_id).workers

    def log(self) -> list[str]:
        return [line.message for line in self.bench.ledger.logs(self.job_id)]

    def counted(self, end: str) -> float:
        return self.bench.ledger.totals().get(key_of(HELP, (end,)), 0.0)


@pytest.fixture
def led(bench: Bench) -> Led:
    return Led(bench)


def test_a_helper_does_what_nobody_else_has(led: Led) -> None:
    led.help("help")
    # The fake asked thrice, each time for all units, and does not do the leader's.
    assert led.log() == ["asked as help", "curve.1", "curve.1", "curve.1"]
    assert (led.workers, led.counted("done")) == (1, 1.0)
    job = led.bench.job(led.job_id)
    assert (job.state, job.attempt) == (JobState.RUNNING, 1)
    totals = led.bench.ledger.totals()
    assert totals[key_of(UNIT_SECONDS, ("curve",), "sum")] == 7.5
    assert key_of(ATTEMPTS, ()) not in totals


@pytest.mark.parametrize("behaviour", ["exit", "killed", "fail", "out-of-memory", "silent-claimed"])
def test_a_helper_that_fails_harms_nothing(led: Led, behaviour: str) -> None:
    if behaviour == "silent-claimed":
        led.bench.settings = led.bench.settings.model_copy(update={"stall_seconds": 0.5})
    before = led.bench.job(led.job_id)
    led.help(behaviour)
    after = led.bench.job(led.job_id)
    assert (after.state, after.error, after.fence) == (JobState.RUNNING, None, before.fence)
    assert (led.workers, led.counted("failed")) == (1, 1.0)
    assert led.lead("curve.1").unit == "curve.1"


def test_a_job_whose_helpers_fail_is_left_alone(led: Led) -> None:
    for _ in range(5):
        led.help("exit")
    assert led.counted("failed") == 3.0


@pytest.mark.parametrize("behaviour", ["work", "hang-claimed"])
@pytest.mark.parametrize("how", ["pause", "cancel", "end", "flush", "drain"])
def test_a_helper_stops_with_the_job(led: Led, how: str, behaviour: str) -> None:
    acts: dict[str, Callable[[], object]] = {
        "pause": lambda: led.bench.ledger.request_pause(led.job_id),
        "cancel": lambda: led.bench.ledger.request_cancel(led.job_id),
        "end": lambda: led.bench.ledger.finish(led.job_id, led.claim.fence, JobState.SUCCEEDED),
        "flush": lambda: led.bench.forget_everything(),
        "drain": led.bench.drain.start,
    }
    led.bench.once(lambda: led.workers == 2, acts[how])
    began = time.monotonic()
    led.help(behaviour)
    assert time.monotonic() - began < 20
    if how != "flush":
        assert led.workers == (0 if how == "end" else 1)
        assert led.counted("failed") == 0.0
    if how == "drain":
        assert led.lead("curve.1").unit == "curve.1"


def test_a_call_for_a_job_that_wants_no_help_is_harmless(led: Led) -> None:
    led.lead("allocate")
    led.help("exit")
    led.bench.ledger.release(led.job_id, led.claim.fence)
    led.help("exit")
    assert led.counted("failed") == 0.0


def test_a_drained_worker_does_not_begin_to_help(led: Led) -> None:
    led.bench.drain.start()
    led.help("exit")
    assert led.counted("failed") == 0.0


def let_wait(led: Led, tenant: str) -> str:
    """A job of that tenant that has waited for long."""
    job_id = led.bench.submit(tenant=tenant)
    ledger = led.bench.ledger
    line = ledger._key("tenant", tenant, "line")
    ledger._client.zadd(line, {job_id: 1e10 + ledger.now() - 60}, xx=True)
    return job_id


def test_help_waits_for_jobs_whose_doorbells_are_lost(led: Led) -> None:
    waiting = let_wait(led, "rival")
    led.help("help")
    assert (led.log(), led.counted("done"), led.workers) == ([], 0.0, 1)
    assert led.bench.doorbell.rung == 1
    assert led.bench.run(waiting, "succeed").state is JobState.SUCCEEDED
    led.help("help")
    assert led.counted("done") == 1.0


def test_a_helper_leaves_for_another_tenants_job(led: Led) -> None:
    """However many workers a job may have, each stays for a unit at most once another one waits."""
    led.bench.once(lambda: led.workers == 2, lambda: let_wait(led, "rival"))
    began = time.monotonic()
    led.help("claim-on")
    assert time.monotonic() - began < 20
    assert (led.workers, led.counted("failed")) == (1, 0.0)
    assert led.bench.doorbell.rung == 1
    taken = led.bench.ledger.claim("this worker", 60)
    assert taken.record is not None
    assert taken.record.tenant == "rival"


def test_a_leader_asks_and_rings_for_help(bench: Bench) -> None:
    job_id = bench.submit(max_workers=3)
    assert bench.run(job_id, "lead").state is JobState.SUCCEEDED
    log = [line.message for line in bench.ledger.logs(job_id)]
    assert log == ["asked as lead", "curve.0", "curve.0", "curve.0"]
    assert bench.doorbell.helped == [job_id, job_id]


def test_a_job_for_one_worker_asks_nobody(bench: Bench) -> None:
    summary = bench.run(bench.submit(), "echo").summary
    assert summary is not None
    assert summary["request"]["part"] == "alone"
    assert bench.doorbell.helped == []


class Deaf:
    """Seats in a ledger that does not answer."""

    def reserve_unit(self, *_: object) -> UnitReservation:
        raise LedgerUnavailable("no answer")

    beat = held_units = reserve_unit


def test_without_the_ledger_leaders_go_on_and_helpers_wait(bench: Bench) -> None:
    def reservations(holder: str) -> UnitReservations:
        return UnitReservations(Deaf(), bench.doorbell, "job", 1, holder)  # type: ignore[arg-type]

    def answer(holder: str) -> Answer:
        return reservations(holder).answer(READY)

    assert answer(LEADER) == Answer(go=True, unit="curve.0")
    assert answer("seat") == Answer(go=True, unit=None)
    assert reservations(LEADER).held() == Held(go=True, units=[])
    assert reservations("seat").held() == Held(go=True, units=None)


def test_without_the_ledger_a_seat_is_lost_when_it_must_have_lapsed(
    led: Led, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    place = led.bench.ledger.seats.take(led.job_id, "seat", 60)
    assert isinstance(place, Place)
    seat = Seat(led.bench.ledger, place, 60, clock=lambda: now[0])
    assert seat.beat().value == "continue"
    monkeypatch.setattr(led.bench.ledger, "seats", Deaf())
    now[0] += 59
    assert seat.beat().value == "continue"
    now[0] += 2
    assert seat.beat().value == "lost"
