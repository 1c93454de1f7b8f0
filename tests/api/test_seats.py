"""Several workers on one job, in the real ledger: seats, claims on units, calls for help."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from api.jobs.ledger import Ledger, LedgerUnavailable, connect
from api.jobs.limits import RunningLimits
from api.jobs.record import Claim, Signal
from api.jobs.seats import HELP_FAILURES, LEADER, Place, UnitReservation
from api.jobs.state import JobState
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.records import ERROR, new_job

READY = ["curve.0", "curve.1", "curve.2"]


@pytest.fixture
def led(ledger: Ledger) -> Claim:
    """A running job that three workers may serve; its leader has claimed `curve.0` of `READY`."""
    ledger.create(new_job(max_workers=3))
    claim = claim_job(ledger, "job_a", "leader", 60)
    assert isinstance(claim, Claim)
    assert ledger.seats.reserve_unit("job_a", claim.fence, LEADER, READY) == UnitReservation(
        "go", "curve.0", bells=2
    )
    return claim


def seated(ledger: Ledger, seat: str = "one", seconds: float = 60.0) -> Place:
    place = ledger.seats.take("job_a", seat, seconds)
    assert place is not None
    return place


def let_wait(ledger: Ledger, job_id: str, tenant: str = "acme", seconds: float = 60.0) -> None:
    """Make a queued job of normal priority as old as if it had waited so long."""
    place = 1e10 + time.time() - seconds
    ledger._client.zadd(ledger._key("tenant", tenant, "line"), {job_id: place}, xx=True)


def workers(ledger: Ledger) -> int:
    record = ledger.get("job_a")
    assert record is not None
    return record.workers


def unit(ledger: Ledger, claim: Claim | Place, ready: list[str] = READY) -> str | None:
    holder = claim.seat if isinstance(claim, Place) else LEADER
    answer = ledger.seats.reserve_unit("job_a", claim.fence, holder, ready)
    assert answer.word == "go"
    return answer.unit


def test_a_job_for_one_worker_has_no_seats(ledger: Ledger) -> None:
    ledger.create(new_job())
    claim = claim_job(ledger, "job_a", "leader", 60)
    assert isinstance(claim, Claim)
    answer = ledger.seats.reserve_unit("job_a", claim.fence, LEADER, READY)
    assert (answer.unit, answer.bells) == ("curve.0", 0)
    assert ledger.seats.take("job_a", "one", 60) is None
    assert ledger.seats.wanted(0, 10) == []


def test_units_are_claimed_once(ledger: Ledger, led: Claim) -> None:
    one, two = seated(ledger, "one"), seated(ledger, "two")
    assert unit(ledger, one) == "curve.1"
    assert unit(ledger, two) == "curve.2"
    assert unit(ledger, led, READY[1:]) is None
    # The claim gave up what the leader had.
    assert unit(ledger, two) == "curve.0"
    assert unit(ledger, two, []) is None
    assert unit(ledger, led, [*READY[1:], "capture.3"]) == "curve.2"


def test_a_unit_that_is_being_stored_stays_claimed(ledger: Ledger, led: Claim) -> None:
    def lead(*ready: str, keeping: str | None) -> str | None:
        claim = ledger.seats.reserve_unit("job_a", led.fence, LEADER, ready, keeping)
        return claim.unit

    one = seated(ledger, "one")
    assert lead("curve.1", keeping="curve.0") == "curve.1"
    assert unit(ledger, one) == "curve.2"
    assert lead("curve.2", keeping="curve.1") is None
    assert unit(ledger, one, ["curve.0", "curve.1"]) == "curve.0"
    assert unit(ledger, one, ["curve.1"]) is None
    assert lead(keeping=None) is None
    assert unit(ledger, one, ["curve.1"]) == "curve.1"


def test_who_has_what_is_told_without_changing_it(ledger: Ledger, led: Claim) -> None:
    def held(claim: Claim | Place) -> frozenset[str] | None:
        holder = claim.seat if isinstance(claim, Place) else LEADER
        return ledger.seats.held_units("job_a", claim.fence, holder)

    one, two = seated(ledger, "one"), seated(ledger, "two", seconds=30)
    assert unit(ledger, two) == "curve.1"
    ledger.seats.reserve_unit("job_a", led.fence, LEADER, ["curve.2"], keeping="curve.0")
    wanted = ledger.seats.wanted(0, 10)
    assert held(led) == held(one) == frozenset(READY)
    assert ledger.seats.wanted(0, 10) == wanted
    advance(ledger, 31)
    assert held(two) is None
    assert held(led) == frozenset(["curve.0", "curve.2"])
    assert ledger.seats.held_units("job_a", led.fence - 1, LEADER) is None


def test_there_are_so_many_seats(ledger: Ledger, led: Claim) -> None:
    assert seated(ledger, "one") == Place("job_a", "one", led.fence, led.attempt, led.run)
    assert workers(ledger) == 2
    assert seated(ledger, "one") == seated(ledger, "one")  # as when an answer got lost
    seated(ledger, "two")
    assert workers(ledger) == 3
    assert ledger.seats.take("job_a", "three", 60) is None
    said = [event.data for event in ledger.events("job_a") if event.type == "workers"]
    assert said == [{"workers": 2}, {"workers": 3}]


def test_nobody_is_seated_where_nothing_is_left(ledger: Ledger, led: Claim) -> None:
    unit(ledger, led, ["allocate"])
    assert ledger.seats.take("job_a", "one", 60) is None


def test_help_is_rung_for_when_work_comes_up_and_then_by_reconcilers(
    ledger: Ledger, led: Claim
) -> None:
    def bells(*ready: str) -> int:
        return ledger.seats.reserve_unit("job_a", led.fence, LEADER, ready).bells

    assert bells(*READY) == 0  # `led` has heard them
    assert ledger.seats.wanted(60, 10) == []
    assert ledger.seats.wanted(0, 10) == [("job_a", 2)]
    assert ledger.seats.wanted(60, 10) == []
    seated(ledger)
    assert ledger.seats.wanted(0, 10) == [("job_a", 1)]
    assert bells("allocate") == 0
    assert ledger.seats.wanted(0, 10) == []
    assert bells("solve.0", "solve.1", "solve.2") == 1


def test_helpers_are_counted(ledger: Ledger, led: Claim) -> None:
    assert ledger.seats.counts() == {"helping": 0, "wanted": 2}
    seated(ledger, "one", seconds=30)
    seated(ledger, "two")
    assert ledger.seats.counts() == {"helping": 2, "wanted": 0}
    advance(ledger, 31)
    assert ledger.seats.counts()["helping"] == 1
    ledger.release("job_a", led.fence)
    assert ledger.seats.counts() == {"helping": 0, "wanted": 0}


def test_a_seat_lapses_and_its_unit_with_it(ledger: Ledger, led: Claim) -> None:
    place = seated(ledger, seconds=30)
    assert unit(ledger, place) == "curve.1"
    advance(ledger, 31)
    assert ledger.seats.reserve_unit("job_a", place.fence, place.seat, READY).word == "lost"
    assert ledger.seats.beat(place, 60) is Signal.LOST
    assert not ledger.seats.leave(place)
    assert workers(ledger) == 1
    assert unit(ledger, led, READY[1:]) == "curve.1"


def test_a_heartbeat_of_the_leader_notices_a_lapse(ledger: Ledger, led: Claim) -> None:
    seated(ledger, seconds=30)
    advance(ledger, 31)
    assert ledger.heartbeat("job_a", led.fence, 60, {"phase": "solving"}) is Signal.CONTINUE
    record = ledger.get("job_a")
    assert record is not None
    assert (record.workers, record.progress) == (1, {"phase": "solving"})


def test_beats_keep_a_seat_and_tell_of_stops(ledger: Ledger, led: Claim) -> None:
    place = seated(ledger, seconds=10)
    assert ledger.seats.beat(place, 60) is Signal.CONTINUE
    advance(ledger, 11)
    assert unit(ledger, place) == "curve.1"
    ledger.request_pause("job_a")
    assert ledger.seats.beat(place, 60) is Signal.PAUSE
    assert ledger.seats.take("job_a", "two", 60) is None


def test_leaving_gives_seat_and_unit_back(ledger: Ledger, led: Claim) -> None:
    place = seated(ledger)
    assert unit(ledger, place) == "curve.1"
    assert ledger.seats.leave(place)
    assert workers(ledger) == 1
    assert unit(ledger, led, READY[1:]) == "curve.1"


@pytest.mark.parametrize("how", ["released", "failed", "expired", "ended"])
def test_a_helper_of_an_attempt_that_is_over_has_no_part(
    ledger: Ledger, led: Claim, how: str
) -> None:
    place = seated(ledger)
    match how:
        case "released":
            ledger.release("job_a", led.fence)
        case "failed":
            ledger.retry_later("job_a", led.fence, ERROR)
        case "expired":
            advance(ledger, 61)
            assert ledger.requeue_expired(10) == ["job_a"]
        case "ended":
            ledger.finish("job_a", led.fence, JobState.SUCCEEDED)
    assert workers(ledger) == 0
    assert ledger.seats.wanted(0, 10) == []
    again = claim_job(ledger, "job_a", "another", 60)
    assert ledger.seats.beat(place, 60) is Signal.LOST
    assert ledger.seats.reserve_unit("job_a", place.fence, place.seat, READY).word == "lost"
    assert ledger.seats.reserve_unit("job_a", led.fence, LEADER, READY).word == "lost"
    assert not ledger.seats.leave(place, failed=True)
    if isinstance(again, Claim):
        assert workers(ledger) == 1
        assert unit(ledger, again) == "curve.0"


def test_an_attempt_in_which_helpers_fail_is_left_to_its_leader(ledger: Ledger, led: Claim) -> None:
    for number in range(HELP_FAILURES):
        assert ledger.seats.leave(seated(ledger, f"seat-{number}"), failed=True)
    assert ledger.seats.take("job_a", "one", 60) is None
    assert ledger.seats.reserve_unit("job_a", led.fence, LEADER, READY).bells == 0
    assert ledger.seats.wanted(0, 10) == []
    # The next attempt may do better.
    ledger.release("job_a", led.fence)
    again = claim_job(ledger, "job_a", "another", 60)
    assert isinstance(again, Claim)
    assert ledger.seats.reserve_unit("job_a", again.fence, LEADER, READY).bells == 2


def word(ledger: Ledger, place: Place, free_bytes: int = 0, max_running: int | None = None) -> str:
    limits = RunningLimits(max_running)
    claim = ledger.seats.reserve_unit(
        "job_a", place.fence, place.seat, READY, None, free_bytes, limits
    )
    return claim.word


def test_a_helper_yields_to_a_job_that_waits(ledger: Ledger, led: Claim) -> None:
    place = seated(ledger)
    ledger.create(new_job("job_b"))
    assert word(ledger, place) == "go"  # an idle worker would be faster
    let_wait(ledger, "job_b")
    assert word(ledger, place) == "yield"
    # One that its tenant may not have running would gain nothing.
    assert word(ledger, place, max_running=1) == "go"
    assert ledger.seats.reserve_unit("job_a", led.fence, LEADER, READY).word == "go"
    assert isinstance(claim_job(ledger, "job_b", "worker", 60), Claim)
    assert word(ledger, place) == "go"


def test_no_seat_is_taken_while_a_job_waits(ledger: Ledger, led: Claim) -> None:
    """Also where its doorbell is lost, and the worker hears the call for help first."""
    ledger.create(new_job("job_b", tenant="rival", scratch_bytes=1000))
    seated(ledger, "one")
    let_wait(ledger, "job_b", "rival")
    assert ledger.seats.take("job_a", "two", 60, free_bytes=1000) is None
    assert ledger.seats.take("job_a", "two", 60, RunningLimits(0), 1000) is not None
    ledger.seats.leave(seated(ledger, "two"))
    assert ledger.seats.take("job_a", "two", 60, free_bytes=999) is not None
    assert ledger.seats.take("job_a", "one", 60, free_bytes=1000) is not None  # it has its seat


def test_a_job_that_rests_is_none_to_yield_to(ledger: Ledger, led: Claim) -> None:
    place = seated(ledger)
    ledger.create(new_job("job_b"))
    claim = claim_job(ledger, "job_b", "worker", 60)
    assert isinstance(claim, Claim)
    ledger.retry_later("job_b", claim.fence, ERROR)
    let_wait(ledger, "job_b")
    assert word(ledger, place) == "go"
    assert ledger.end_rests(0, 10) == ["job_b"]
    let_wait(ledger, "job_b")
    assert word(ledger, place) == "yield"


def test_a_helper_yields_to_no_job_that_its_worker_has_no_room_for(
    ledger: Ledger, led: Claim
) -> None:
    place = seated(ledger)
    ledger.create(new_job("job_b", scratch_bytes=1000))
    let_wait(ledger, "job_b")
    assert word(ledger, place, 999) == "go"
    assert word(ledger, place, 1000) == "yield"


@pytest.mark.parametrize("why", ["blocked", "large"])
def test_jobs_that_nobody_can_take_do_not_hide_one_that_this_worker_can(
    ledger: Ledger, led: Claim, why: str
) -> None:
    place, blocked, most = seated(ledger), why == "blocked", 1 if why == "blocked" else None
    for number in range(250):
        ledger.create(new_job(f"job_{number}", scratch_bytes=0 if blocked else 1000))
        let_wait(ledger, f"job_{number}")
    assert word(ledger, place, max_running=most) == "go"
    ledger.create(new_job("job_z", tenant="rival"))
    let_wait(ledger, "job_z", "rival", 30)
    assert word(ledger, place, max_running=most) == "yield"


def test_a_flushed_redis_knows_no_seat(
    redis_url: str, flush: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = connect(redis_url, "flushed")
    ledger.create(new_job(max_workers=2))
    claim = claim_job(ledger, "job_a", "leader", 60)
    assert isinstance(claim, Claim)
    ledger.seats.reserve_unit("job_a", claim.fence, LEADER, READY)
    place = seated(ledger)
    flush.flushdb()
    assert ledger.seats.beat(place, 60) is Signal.LOST
    assert ledger.seats.reserve_unit("job_a", claim.fence, LEADER, READY).word == "lost"
    assert not ledger.seats.leave(place)
    ledger.close()


def test_repeated_calls_are_one_call(
    ledger: Ledger, led: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ledger.seats._run

    def twice(verb: str, *args: str | int | float) -> Any:
        run(verb, *args)
        return run(verb, *args)

    monkeypatch.setattr(ledger.seats, "_run", twice)
    place = seated(ledger)
    assert unit(ledger, place) == "curve.1"
    assert workers(ledger) == 2
    ledger.seats.leave(place, failed=True)
    assert workers(ledger) == 1
    assert ledger._client.hget(ledger._key("job", "job_a"), "help_failures") == "1"


def test_an_outage_is_told_as_one() -> None:
    ledger = connect("redis://127.0.0.1:1/0")
    with pytest.raises(LedgerUnavailable):
        ledger.seats.take("job_a", "one", 60)
    ledger.close()
