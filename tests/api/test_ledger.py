from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.jobs.ledger import Ledger, LedgerUnavailable, connect
from api.jobs.record import Claim, Refusal, Signal
from api.jobs.state import HELD, TERMINAL, TRANSITIONS, JobState
from embedded.valkey import ValkeyServer
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.records import ERROR, new_job


def state_of(ledger: Ledger, job_id: str = "job_a") -> JobState:
    record = ledger.get(job_id)
    assert record is not None
    return record.state


def claimed(ledger: Ledger, **changes: Any) -> Claim:
    ledger.create(new_job(**changes))
    claim = claim_job(ledger, "job_a", "worker-1", 60)
    assert isinstance(claim, Claim)
    return claim


def test_create_is_a_no_op_the_second_time(ledger: Ledger) -> None:
    assert ledger.create(new_job(labels={"a": "b"}, priority="high"))
    assert not ledger.create(new_job(tenant="rival"))
    record = ledger.get("job_a")
    assert record is not None
    assert (record.tenant, record.state, record.revision) == ("acme", JobState.QUEUED, 1)
    assert (record.labels, record.priority) == ({"a": "b"}, "high")
    assert record.spec == {"model": {"uri": "s3://b/m"}}
    assert record.finished_at is None
    assert record.error is None


def test_fields_of_a_newer_release_are_ignored(ledger: Ledger) -> None:
    """Releases share one ledger while they are rolled out, and after a rollback."""
    ledger.create(new_job())
    before = ledger.get("job_a")
    ledger._client.hset(ledger._key("job", "job_a"), "of_the_future", "1")
    assert ledger.get("job_a") == before


def test_unknown_job(ledger: Ledger) -> None:
    assert ledger.get("job_x") is None
    assert claim_job(ledger, "job_x", "w", 60) is Refusal.NOTHING
    assert ledger.heartbeat("job_x", 1, 60) == Signal.LOST
    assert not ledger.finish("job_x", 1, JobState.SUCCEEDED)
    assert not ledger.release("job_x", 1)
    assert ledger.request_cancel("job_x") is None
    assert ledger.retry_later("job_x", 1, ERROR) == JobState.QUEUED
    assert ledger.events("job_x") == []


def test_a_claim_takes_the_job(ledger: Ledger) -> None:
    claim = claimed(ledger)
    assert (claim.attempt, claim.run) == (1, 1)
    assert claim_job(ledger, "job_a", "worker-2", 60) is Refusal.NOTHING
    record = ledger.get("job_a")
    assert record is not None
    assert record.fence == claim.fence
    assert (record.state, record.lease_owner) == (JobState.RUNNING, "worker-1")
    assert record.lease_expires_at == pytest.approx(time.time() + 60, abs=5)
    assert record.started_at == pytest.approx(time.time(), abs=5)


@pytest.fixture
def deaf(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger that does all twice, as when the client repeats a call whose answer is lost."""
    run = ledger._run

    def twice(verb: str, *args: str | int | float) -> Any:
        run(verb, *args)
        return run(verb, *args)

    monkeypatch.setattr(ledger, "_run", twice)
    return ledger


def test_a_repeated_claim_is_the_same_claim(deaf: Ledger) -> None:
    deaf.create(new_job())
    claim = claim_job(deaf, "job_a", "worker-1", 60)
    record = deaf.get("job_a")
    assert record is not None
    assert claim == Claim("job_a", record.fence, attempt=1)
    assert claim_job(deaf, "job_a", "worker-1", 60) is Refusal.NOTHING


@pytest.mark.parametrize(
    ("ask", "state"),
    [
        (None, JobState.QUEUED),
        ("request_pause", JobState.PAUSED),
        ("request_cancel", JobState.CANCELLED),
    ],
)
def test_a_repeated_release_is_one_release(deaf: Ledger, ask: str | None, state: JobState) -> None:
    claim = claimed(deaf)
    if ask is not None:
        getattr(deaf, ask)("job_a")
    assert deaf.release("job_a", claim.fence)
    assert state_of(deaf) == state
    assert not deaf.release("job_a", claim.fence)


def test_all_other_verbs_may_be_repeated(deaf: Ledger) -> None:
    claim = claimed(deaf, max_attempts=2)
    assert deaf.retry_later("job_a", claim.fence, ERROR) == JobState.QUEUED
    deaf.request_pause("job_a")
    deaf.resume("job_a")
    assert state_of(deaf) == JobState.QUEUED
    second = claim_job(deaf, "job_a", "w", 60)
    assert isinstance(second, Claim)
    assert second.attempt == 2
    assert deaf.retry_later("job_a", second.fence, ERROR) == JobState.FAILED


def test_one_of_many_racing_claims_wins(ledger: Ledger) -> None:
    for round_number in range(10):
        job_id = f"job_{round_number}"
        ledger.create(new_job(job_id))
        with ThreadPoolExecutor(16) as pool:
            claims = list(
                pool.map(lambda n, job=job_id: claim_job(ledger, job, f"w{n}", 60), range(16))
            )
        assert len([claim for claim in claims if isinstance(claim, Claim)]) == 1


def test_success(ledger: Ledger) -> None:
    claim = claimed(ledger)
    assert ledger.finish("job_a", claim.fence, JobState.SUCCEEDED, summary={"seconds": 1.5})
    record = ledger.get("job_a")
    assert record is not None
    assert (record.state, record.summary) == (JobState.SUCCEEDED, {"seconds": 1.5})
    assert record.finished_at is not None
    assert record.lease_owner is None
    assert ledger.expired(10) == []


def test_finishing_twice_is_no_error_but_otherwise_is(ledger: Ledger) -> None:
    claim = claimed(ledger)
    assert ledger.finish("job_a", claim.fence, JobState.SUCCEEDED)
    assert ledger.finish("job_a", claim.fence, JobState.SUCCEEDED)
    assert not ledger.finish("job_a", claim.fence, JobState.FAILED, error=ERROR)
    assert state_of(ledger) == JobState.SUCCEEDED


def test_a_stale_fence_changes_nothing(ledger: Ledger) -> None:
    zombie = claimed(ledger)
    ledger.release("job_a", zombie.fence)
    assert ledger.heartbeat("job_a", zombie.fence, 60) == Signal.LOST  # queued, held by nobody
    owner = claim_job(ledger, "job_a", "worker-2", 60)
    assert isinstance(owner, Claim)
    assert owner.fence > zombie.fence
    before = ledger.get("job_a")
    assert not ledger.finish("job_a", zombie.fence, JobState.SUCCEEDED)
    assert not ledger.release("job_a", zombie.fence)
    assert ledger.heartbeat("job_a", zombie.fence, 60, {"phase": "solving"}) == Signal.LOST
    assert ledger.retry_later("job_a", zombie.fence, ERROR) == JobState.RUNNING
    assert ledger.get("job_a") == before
    assert ledger.finish("job_a", owner.fence, JobState.SUCCEEDED)


def test_a_fence_is_new_also_after_the_last_writes_were_lost(tmp_path: Path) -> None:
    """As by a crash with `appendfsync everysec`, or by a failover to a replica that was behind."""
    directory = tmp_path / "valkey"
    with ValkeyServer(directory) as server:
        ledger = connect(server.url)
        ledger.create(new_job())
        server.stop()
        shutil.copytree(directory, tmp_path / "earlier")
        server.start()
        forgotten = claim_job(ledger, "job_a", "worker-1", 60)
        server.kill()
        shutil.rmtree(directory)
        (tmp_path / "earlier").rename(directory)
        server.start()
        claim = claim_job(ledger, "job_a", "worker-2", 60)
        assert isinstance(forgotten, Claim)
        assert isinstance(claim, Claim)
        assert ledger.heartbeat("job_a", forgotten.fence, 60) == Signal.LOST
        assert ledger.heartbeat("job_a", claim.fence, 60) == Signal.CONTINUE
        ledger.close()


def test_heartbeat_renews_the_lease(ledger: Ledger) -> None:
    claim = claimed(ledger)
    advance(ledger, 59)
    assert ledger.heartbeat("job_a", claim.fence, 60) == Signal.CONTINUE
    advance(ledger, 59)
    assert ledger.requeue_expired(10) == []


def test_progress_makes_an_event_per_layer_and_a_revision_per_change(ledger: Ledger) -> None:
    claim = claimed(ledger)

    def beat(layers_done: int, eta_seconds: float) -> int:
        progress = {"phase": "solving", "layers_done": layers_done, "eta_seconds": eta_seconds}
        ledger.heartbeat("job_a", claim.fence, 60, progress)
        record = ledger.get("job_a")
        assert record is not None
        assert record.progress == progress
        return record.revision

    first = beat(1, 9.0)
    assert beat(1, 9.0) == first
    assert beat(1, 8.0) == first + 1
    assert beat(2, 7.0) == first + 2
    seen = [event.data["layers_done"] for event in ledger.events("job_a") if event.type != "state"]
    assert seen == [1, 2]


def test_cancel_while_queued_is_immediate(ledger: Ledger) -> None:
    ledger.create(new_job())
    record = ledger.request_cancel("job_a")
    assert record is not None
    assert record.state == JobState.CANCELLED
    assert claim_job(ledger, "job_a", "w", 60) is Refusal.NOTHING
    assert ledger.queued() == 0
    assert ledger.queued_longer_than(0, 10) == []


def test_cancel_while_running_asks_the_worker(ledger: Ledger) -> None:
    claim = claimed(ledger)
    record = ledger.request_cancel("job_a")
    assert record is not None
    assert record.state == JobState.CANCELLING
    assert ledger.heartbeat("job_a", claim.fence, 60) == Signal.CANCEL
    assert ledger.finish("job_a", claim.fence, JobState.CANCELLED)
    assert ledger.request_cancel("job_a") == ledger.get("job_a")


def test_commit_wins_the_race_with_cancel(ledger: Ledger) -> None:
    claim = claimed(ledger)
    ledger.request_cancel("job_a")
    assert ledger.finish("job_a", claim.fence, JobState.SUCCEEDED)
    assert state_of(ledger) == JobState.SUCCEEDED


def test_nobody_cancelled_so_the_worker_cannot(ledger: Ledger) -> None:
    claim = claimed(ledger)
    assert not ledger.finish("job_a", claim.fence, JobState.CANCELLED)


def test_drain_costs_no_attempt(ledger: Ledger) -> None:
    claim = claimed(ledger, max_attempts=1)
    assert ledger.release("job_a", claim.fence)
    again = claim_job(ledger, "job_a", "worker-2", 60)
    assert isinstance(again, Claim)
    assert again.attempt == 1


def test_what_kept_a_worker_from_going_on_is_told(ledger: Ledger) -> None:
    claim = claimed(ledger, max_attempts=1)
    assert ledger.release("job_a", claim.fence, ERROR)
    job = ledger.get("job_a")
    assert job is not None
    assert (job.state, job.attempt, job.error) == (JobState.QUEUED, 0, ERROR)
    again = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(again, Claim)
    assert again.attempt == 1
    ledger.request_pause("job_a")
    ledger.release("job_a", again.fence, ERROR)
    job = ledger.get("job_a")
    assert job is not None
    assert (job.state, job.error) == (JobState.PAUSED, None)


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_a_job_that_waits_no_more_does_not_say_why_it_did(ledger: Ledger, verb: str) -> None:
    ledger.create(new_job())
    assert ledger.decline("job_a", ERROR, 0)
    getattr(ledger, f"request_{verb}")("job_a")
    job = ledger.get("job_a")
    assert job is not None
    assert job.error is None


def test_a_job_that_is_left_tells_of_it_once_and_not_at_once(ledger: Ledger) -> None:
    ledger.create(new_job())
    assert not ledger.decline("job_a", ERROR, 60)
    assert not ledger.decline("unknown", ERROR, 0)
    before = ledger.get("job_a")
    assert ledger.decline("job_a", ERROR, 0)
    assert not ledger.decline("job_a", ERROR, 0)
    job = ledger.get("job_a")
    assert before is not None
    assert job is not None
    assert (job.state, job.error, job.revision) == (JobState.QUEUED, ERROR, before.revision + 1)
    event = ledger.events("job_a")[-1]
    assert (event.data["reason"], event.data["error"]) == ("declined", ERROR)
    assert ledger.queued() == 1
    claim_job(ledger, "job_a", "w", 60)
    assert not ledger.decline("job_a", ERROR, 0)
    job = ledger.get("job_a")
    assert job is not None
    assert job.error is None


def test_pause_and_resume(ledger: Ledger) -> None:
    claim = claimed(ledger)
    ledger.request_pause("job_a")
    assert ledger.heartbeat("job_a", claim.fence, 60) == Signal.PAUSE
    assert ledger.release("job_a", claim.fence)
    assert state_of(ledger) == JobState.PAUSED
    assert claim_job(ledger, "job_a", "w", 60) is Refusal.NOTHING
    ledger.resume("job_a")
    assert state_of(ledger) == JobState.QUEUED
    ledger.request_pause("job_a")
    assert state_of(ledger) == JobState.PAUSED
    ledger.request_cancel("job_a")
    assert state_of(ledger) == JobState.CANCELLED


def test_a_withdrawn_pause_is_not_signalled(ledger: Ledger) -> None:
    claim = claimed(ledger)
    ledger.request_pause("job_a")
    ledger.resume("job_a")
    assert ledger.heartbeat("job_a", claim.fence, 60) == Signal.CONTINUE


def test_retry_later_until_attempts_are_used_up(ledger: Ledger) -> None:
    claim = claimed(ledger, max_attempts=2)
    assert ledger.retry_later("job_a", claim.fence, ERROR) == JobState.QUEUED
    second = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(second, Claim)
    assert ledger.retry_later("job_a", second.fence, ERROR) == JobState.FAILED
    record = ledger.get("job_a")
    assert record is not None
    assert record.error == ERROR


@pytest.mark.parametrize(
    ("request_stop", "state"),
    [("request_cancel", JobState.CANCELLED), ("request_pause", JobState.PAUSED)],
)
def test_a_requested_stop_comes_before_a_retry(
    ledger: Ledger, request_stop: str, state: JobState
) -> None:
    claim = claimed(ledger)
    getattr(ledger, request_stop)("job_a")
    assert ledger.retry_later("job_a", claim.fence, ERROR) == state


def test_an_expired_lease_is_taken_back(ledger: Ledger) -> None:
    claim = claimed(ledger, max_attempts=2)
    assert ledger.expired(10) == []
    advance(ledger, 61)
    assert ledger.expired(10) == ["job_a"]
    assert ledger.requeue_expired(10) == ["job_a"]
    assert ledger.requeue_expired(10) == []
    assert state_of(ledger) == JobState.QUEUED
    assert not ledger.finish("job_a", claim.fence, JobState.SUCCEEDED)
    claim_job(ledger, "job_a", "w", 60)
    advance(ledger, 61)
    ledger.requeue_expired(10)
    record = ledger.get("job_a")
    assert record is not None
    assert record.state == JobState.FAILED
    assert record.error is not None
    assert record.error["code"] == "worker_lost"


def test_a_cancellation_whose_worker_died_is_finished(ledger: Ledger) -> None:
    claimed(ledger)
    ledger.request_cancel("job_a")
    advance(ledger, 61)
    ledger.requeue_expired(10)
    assert state_of(ledger) == JobState.CANCELLED


def test_settle_overrules_the_ledger(ledger: Ledger) -> None:
    claimed(ledger)
    at = ledger.now()
    assert ledger.settle("job_a", JobState.SUCCEEDED, finished_at=at, summary={"x": 1})
    assert not ledger.settle("job_a", JobState.SUCCEEDED, finished_at=at - 1)
    record = ledger.get("job_a")
    assert record is not None
    assert (record.state, record.summary) == ("succeeded", {"x": 1})
    assert record.finished_at == pytest.approx(at, abs=1e-5)
    assert ledger.expired(10) == []


@pytest.mark.parametrize("wrong_by", [-(10.0**9), 10.0**9])
def test_the_wrong_clock_of_a_worker_moves_no_retention(ledger: Ledger, wrong_by: float) -> None:
    claimed(ledger)
    before = ledger.get("job_a")
    assert before is not None
    ledger.settle("job_a", JobState.SUCCEEDED, finished_at=time.time() + wrong_by)
    record = ledger.get("job_a")
    assert record is not None
    assert before.started_at is not None
    assert record.finished_at is not None
    assert before.started_at <= record.finished_at <= ledger.now()
    assert ledger.ended_longer_than(3600, 10) == []
    advance(ledger, 1)
    assert ledger.ended_longer_than(0, 10) == ["job_a"]


def test_queued_longer_than_rings_once_per_wait(ledger: Ledger) -> None:
    ledger.create(new_job())
    assert ledger.queued() == 1
    assert ledger.queued_longer_than(30, 10) == []
    advance(ledger, 31)
    assert ledger.queued_longer_than(30, 10) == ["job_a"]
    assert ledger.queued_longer_than(30, 10) == []


def test_events_tell_the_story_and_resume(ledger: Ledger) -> None:
    claim = claimed(ledger)
    ledger.retry_later("job_a", claim.fence, ERROR)
    events = ledger.events("job_a")
    assert [event.data["state"] for event in events] == ["queued", "running", "queued"]
    assert events[2].data["error"] == ERROR
    assert ledger.events("job_a", after=events[0].id, limit=1) == [events[1]]
    assert ledger.events("job_a", after=events[-1].id) == []


def test_what_is_found_out_about_layers_is_an_event_of_the_holder(ledger: Ledger) -> None:
    claim = claimed(ledger)
    before = ledger.get("job_a")
    updates = [{"index": [0, 1], "energy": [0.5, None]}, {"index": [1], "energy": [0.25]}]
    assert ledger.append_layers("job_a", claim.fence, updates)
    told = [event for event in ledger.events("job_a") if event.type == "layers"]
    assert [event.data for event in told] == updates
    assert ledger.get("job_a") == before  # the job itself is as it was, and so is its ETag
    ledger.release("job_a", claim.fence)
    assert not ledger.append_layers("job_a", claim.fence, updates)
    assert not ledger.append_layers("unknown", claim.fence, updates)


def test_pages(ledger: Ledger) -> None:
    # The same instant for all: the order must still be total.
    for number in range(7):
        ledger.create(new_job(f"job_{number}", created_at=1000.0))
    ledger.create(new_job("job_other", tenant="rival"))
    seen: list[str] = []
    cursor = None
    while True:
        page = ledger.list("acme", limit=3, cursor=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"job_{number}" for number in reversed(range(7))]


def test_the_time_of_creation_filters_and_pages(ledger: Ledger) -> None:
    for number in range(5):
        ledger.create(new_job(f"job_{number}", created_at=1000.0 + number))

    def ids(**bounds: Any) -> list[str]:
        return [job.id for job in ledger.list("acme", **bounds).jobs]

    assert ids(created_after=1001.0) == ["job_4", "job_3", "job_2"]
    assert ids(created_after=1000.999999) == ["job_4", "job_3", "job_2", "job_1"]
    assert ids(created_before=1002.0) == ["job_1", "job_0"]
    assert ids(created_before=1002.000001, created_after=1000.0) == ["job_2", "job_1"]
    assert ids(created_before=1000.0) == []
    assert ids(created_after=1003.0, state=JobState.QUEUED) == ["job_4"]
    page = ledger.list("acme", created_after=1000.0, created_before=1004.0, limit=2)
    rest = ledger.list(
        "acme", created_after=1000.0, created_before=1004.0, limit=2, cursor=page.next_cursor
    )
    assert [job.id for job in (*page.jobs, *rest.jobs)] == ["job_3", "job_2", "job_1"]
    assert rest.next_cursor is None
    # A cursor of another list does not widen this one.
    assert ids(created_before=1001.0, cursor=page.next_cursor) == ["job_0"]


def test_filters(ledger: Ledger) -> None:
    ledger.create(new_job("job_a", labels={"team": "nlp", "odd": "a=b:c"}))
    ledger.create(new_job("job_b", labels={"team": "nlp"}))
    ledger.create(new_job("job_c"))
    claim_job(ledger, "job_a", "w", 60)

    def ids(**filters: Any) -> set[str]:
        return {job.id for job in ledger.list("acme", limit=10, **filters).jobs}

    assert ids(state=JobState.RUNNING) == {"job_a"}
    assert ids(state=JobState.QUEUED) == {"job_b", "job_c"}
    assert ids(label=("team", "nlp")) == {"job_a", "job_b"}
    assert ids(label=("odd", "a=b:c")) == {"job_a"}
    assert ids(label=("team", "nlp"), state=JobState.QUEUED) == {"job_b"}
    assert ids(label=("team", "vision")) == set()


def test_intact_marker(ledger: Ledger) -> None:
    assert not ledger.is_intact()
    ledger.mark_intact()
    assert ledger.is_intact()


def test_no_server() -> None:
    ledger = connect("redis://127.0.0.1:1/0")
    with pytest.raises(LedgerUnavailable):
        ledger.get("job_a")


VERBS = st.lists(
    st.sampled_from(
        [
            "claim",
            "beat",
            "release",
            "retry",
            "succeed",
            "fail",
            "end_cancel",
            "cancel",
            "pause",
            "resume",
            "reopen",
            "expire",
            "decline",
            "end_rests",
            "zombie",
        ]
    ),
    max_size=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(verbs=VERBS)
def test_any_sequence_of_verbs_follows_the_table(redis_url: str, verbs: list[str]) -> None:
    """States move along the table, indexes agree with records, and no zombie is heard."""
    ledger = connect(redis_url, f"test-{uuid4().hex}")
    ledger.create(new_job())
    fence = 0
    state = JobState.QUEUED
    for verb in verbs:
        if verb == "claim" and isinstance(claim := claim_job(ledger, "job_a", "w", 60), Claim):
            fence = claim.fence
        elif verb == "zombie":
            assert not ledger.finish("job_a", fence - 1, JobState.SUCCEEDED)
            assert not ledger.release("job_a", fence - 1)
        else:
            _perform(ledger, verb, fence)
        after = state_of(ledger)
        assert after == state or after in TRANSITIONS[state], (verb, state, after)
        state = after
        for other in JobState:
            listed = ledger.list("acme", state=other, limit=5).jobs
            assert bool(listed) == (other == state)
        assert bool(ledger.ended_longer_than(0, 5)) == (state in TERMINAL)
        placed = [
            ledger._client.zscore(ledger._key(name), "job_a") is not None
            for name in ("tenant:acme:line", "resting")
        ]
        assert sorted(placed) == [False, state is JobState.QUEUED]
        assert ledger.queued() == int(placed[0])
        assert ledger._client.zcard(ledger._key("turns")) == int(placed[0])
    record = ledger.get("job_a")
    assert record is not None
    assert (record.finished_at is not None) == (state in TERMINAL)
    assert (record.lease_owner is not None) == (state in HELD)
    ledger.close()


def _perform(ledger: Ledger, verb: str, fence: int) -> None:
    actions: dict[str, Callable[[], object]] = {
        "beat": lambda: ledger.heartbeat("job_a", fence, 60, {"phase": "solving"}),
        "release": lambda: ledger.release("job_a", fence),
        "retry": lambda: ledger.retry_later("job_a", fence, ERROR),
        "succeed": lambda: ledger.finish("job_a", fence, JobState.SUCCEEDED),
        "fail": lambda: ledger.finish("job_a", fence, JobState.FAILED, error=ERROR),
        "end_cancel": lambda: ledger.finish("job_a", fence, JobState.CANCELLED),
        "cancel": lambda: ledger.request_cancel("job_a"),
        "pause": lambda: ledger.request_pause("job_a"),
        "resume": lambda: ledger.resume("job_a"),
        "expire": lambda: (ledger.heartbeat("job_a", fence, -1), ledger.requeue_expired(10)),
        "decline": lambda: ledger.decline("job_a", ERROR, 0),
        "end_rests": lambda: ledger.end_rests(0, 10),
        "reopen": lambda: ledger.reopen("job_a", 99),
        "claim": lambda: None,
    }
    actions[verb]()
