"""Whose job is next: the ledger's choice against a simple model, and its promises to tenants."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.jobs.ledger import Ledger, connect
from api.jobs.limits import RunningLimits
from api.jobs.record import Claim, Priority, Refusal
from api.jobs.seats import LEADER, Place
from api.jobs.state import JobState
from tests.support.records import ERROR, new_job

TENANTS = ("acme", "rival", "third")
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


@dataclass
class Model:
    """The same in a few lines.

    Attributes:
        line: Tenant -> (rank, age, job, scratch bytes) of jobs that wait.
        turn: Tenant -> when a worker last took a job of it.
        held: Job -> its claim and the seats of its helpers.
    """

    line: dict[str, list[tuple[int, int, str, int]]] = field(default_factory=dict)
    turn: dict[str, int] = field(default_factory=dict)
    held: dict[str, tuple[Claim, list[Place]]] = field(default_factory=dict)
    place: dict[str, tuple[int, int, str, int]] = field(default_factory=dict)
    tenant: dict[str, str] = field(default_factory=dict)
    clock: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def queue(self, job_id: str) -> None:
        tenant = self.tenant[job_id]
        self.line.setdefault(tenant, []).append(self.place[job_id])

    def jobs(self, tenant: str) -> list[str]:
        return [job_id for job_id in self.held if self.tenant[job_id] == tenant]

    def workers(self, tenant: str) -> int:
        return sum(1 + len(self.held[job_id][1]) for job_id in self.jobs(tenant))

    def next_job(self, limits: RunningLimits, free_bytes: int) -> str | Refusal:
        blocked = large = False
        waiting = [tenant for tenant in sorted(self.line) if self.line[tenant]]
        for tenant in sorted(waiting, key=lambda it: (self.workers(it), self.turn.get(it, 0))):
            most = limits.tenants.get(tenant, limits.default)
            if most is not None and len(self.jobs(tenant)) >= most:
                blocked = True
                continue
            for entry in sorted(self.line[tenant]):
                if entry[3] <= free_bytes:
                    self._leave(tenant, entry)
                    return entry[2]
                large = True
        if large:
            return Refusal.NO_ROOM
        return Refusal.BLOCKED if blocked else Refusal.NOTHING

    def _leave(self, tenant: str, entry: tuple[int, int, str, int]) -> None:
        self.line[tenant].remove(entry)
        self.turn[tenant] = next(self.clock)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.sampled_from(TENANTS),
            st.sampled_from(PRIORITIES),
            st.sampled_from([0, 0, 1000]),
        ),
        st.tuples(st.just("claim"), st.sampled_from([0, 1000])),
        st.tuples(
            st.sampled_from(["finish", "release", "retry", "help", "unhelp"]), st.integers(0)
        ),
        st.tuples(st.just("cancel"), st.integers(0)),
    ),
    max_size=40,
)
LIMITS = st.sampled_from(
    [RunningLimits(), RunningLimits(1), RunningLimits(1, {"acme": None, "rival": 2})]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, limits=LIMITS)
def test_the_ledger_chooses_as_the_model_does(
    redis_url: str, steps: list[tuple[object, ...]], limits: RunningLimits
) -> None:
    ledger = connect(redis_url, f"test-{uuid4().hex}")
    model = Model()
    for step in steps:
        match step:
            case ("submit", str(tenant), str(priority), int(scratch_bytes)):
                _submit(ledger, model, tenant, priority, scratch_bytes)
            case ("claim", int(free_bytes)):
                _claim(ledger, model, limits, free_bytes)
            case ("cancel", int(pick)):
                waiting = [entry for line in model.line.values() for entry in sorted(line)]
                if waiting:
                    _cancel(ledger, model, waiting[pick % len(waiting)])
            case (str(verb), int(pick)):
                if model.held:
                    _act(ledger, model, verb, sorted(model.held)[pick % len(model.held)])
    ledger.close()


def _submit(ledger: Ledger, model: Model, tenant: str, priority: str, scratch_bytes: int) -> None:
    job_id = f"job_{len(model.place):03}"
    ledger.create(
        new_job(
            job_id, tenant=tenant, priority=priority, scratch_bytes=scratch_bytes, max_workers=4
        )
    )
    rank = PRIORITIES.index(priority)
    model.tenant[job_id] = tenant
    model.place[job_id] = (rank, next(model.clock), job_id, scratch_bytes)
    model.queue(job_id)


def _claim(ledger: Ledger, model: Model, limits: RunningLimits, free_bytes: int) -> None:
    expected = model.next_job(limits, free_bytes)
    taken = ledger.claim("w", 60, limits, free_bytes)
    if isinstance(taken.claim, Claim):
        assert taken.claim.job_id == expected
        assert taken.record is not None
        assert (taken.record.id, taken.record.state) == (expected, JobState.RUNNING)
        ready = ["a", "b", "c", "d"]
        ledger.seats.reserve_unit(taken.claim.job_id, taken.claim.fence, LEADER, ready)
        model.held[taken.claim.job_id] = (taken.claim, [])
    else:
        assert taken.claim is expected
    passed = {entry[2] for line in model.line.values() for entry in line if entry[3] > free_bytes}
    assert set(taken.too_large) <= passed


def _cancel(ledger: Ledger, model: Model, entry: tuple[int, int, str, int]) -> None:
    tenant = model.tenant[entry[2]]
    ledger.request_cancel(entry[2])
    model.line[tenant].remove(entry)


def _act(ledger: Ledger, model: Model, verb: str, job_id: str) -> None:
    claim, seats = model.held[job_id]
    match verb:
        case "help":
            place = ledger.seats.take(job_id, f"seat-{next(model.clock)}", 60, RunningLimits(0))
            assert (place is not None) == (len(seats) < 3)
            if place is not None:
                seats.append(place)
            return
        case "unhelp":
            if seats:
                assert ledger.seats.leave(seats.pop())
            return
        case "finish":
            assert ledger.finish(job_id, claim.fence, JobState.SUCCEEDED)
        case "release":
            assert ledger.release(job_id, claim.fence)
        case "retry":
            again = ledger.retry_later(job_id, claim.fence, ERROR) is JobState.QUEUED
            assert ledger.end_rests(0, 10) == ([job_id] if again else [])
            verb = "release" if again else "finish"
    del model.held[job_id]
    if verb == "release":
        model.queue(job_id)


@settings(max_examples=300, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.sampled_from(TENANTS)),
            st.tuples(st.sampled_from(["claim", "end"]), st.integers(0)),
        ),
        max_size=60,
    )
)
def test_a_tenant_that_nobody_serves_is_passed_once_by_each_other_one(
    events: list[tuple[str, object]],
) -> None:
    """Of the model, which is what the ledger does (see above)."""
    model = Model()
    # Tenant that waits unserved -> jobs of others that have started meanwhile.
    passed: dict[str, Counter[str]] = {}

    def note(tenant: str) -> None:
        if model.line.get(tenant) and not model.jobs(tenant):
            passed.setdefault(tenant, Counter())

    for event in events:
        match event:
            case ("submit", str(tenant)):
                job_id = f"job_{len(model.place)}"
                model.tenant[job_id] = tenant
                model.place[job_id] = (1, next(model.clock), job_id, 0)
                model.queue(job_id)
                note(tenant)
            case ("claim", _):
                job_id = model.next_job(RunningLimits(), 0)
                if isinstance(job_id, Refusal):
                    continue
                served = model.tenant[job_id]
                model.held[job_id] = (Claim(job_id, 1, 1), [])
                passed.pop(served, None)
                for others in passed.values():
                    others[served] += 1
                    assert others[served] == 1
            case (_, int(pick)) if model.held:
                job_id = sorted(model.held)[pick % len(model.held)]
                del model.held[job_id]
                note(model.tenant[job_id])


def backlog(ledger: Ledger, tenant: str, jobs: int, **fields: object) -> None:
    for number in range(jobs):
        ledger.create(new_job(f"{tenant}_{number:04}", tenant=tenant, **fields))


def taken(ledger: Ledger, limits: RunningLimits | None = None, free_bytes: int = 0) -> str:
    """The job that the next worker gets, or why it gets none."""
    found = ledger.claim("w", 60, limits or RunningLimits(), free_bytes)
    return found.claim.job_id if isinstance(found.claim, Claim) else found.claim.value


def end(ledger: Ledger, job_id: str) -> None:
    record = ledger.get(job_id)
    assert record is not None
    assert ledger.finish(job_id, record.fence, JobState.SUCCEEDED)


def test_a_backlog_of_one_tenant_delays_another_by_one_job(ledger: Ledger) -> None:
    backlog(ledger, "acme", 60, priority="high")
    first = taken(ledger)
    backlog(ledger, "rival", 1, priority="low")
    end(ledger, first)
    assert taken(ledger) == "rival_0000"


def test_tenants_take_turns_on_one_worker(ledger: Ledger) -> None:
    for tenant in TENANTS:
        backlog(ledger, tenant, 3)
    order = []
    for _ in range(9):
        order.append(taken(ledger))
        end(ledger, order[-1])
    assert [name.partition("_")[0] for name in order] == 3 * [*TENANTS]


def test_who_comes_back_again_and_again_stays_behind_those_that_wait(ledger: Ledger) -> None:
    """One job at a time is no way round the others either."""
    backlog(ledger, "acme", 1)
    backlog(ledger, "rival", 2)
    job_id, order = taken(ledger), []
    for number in range(1, 4):
        ledger.create(new_job(f"acme_{number:04}", tenant="acme"))
        end(ledger, job_id)
        job_id = taken(ledger)
        order.append(job_id)
    assert order[:2] == ["rival_0000", "acme_0001"]
    assert "rival_0001" in order


def test_workers_are_shared_by_what_runs_not_by_what_waits(ledger: Ledger) -> None:
    backlog(ledger, "acme", 10)
    assert [taken(ledger) for _ in range(3)] == ["acme_0000", "acme_0001", "acme_0002"]
    backlog(ledger, "rival", 10)
    got = [taken(ledger) for _ in range(3)]
    assert got == ["rival_0000", "rival_0001", "rival_0002"]
    assert {taken(ledger).partition("_")[0] for _ in range(2)} == {"acme", "rival"}


def test_helpers_count_as_workers_of_their_tenant(ledger: Ledger) -> None:
    backlog(ledger, "acme", 2, max_workers=8)
    leader = ledger.claim("w", 60).claim
    assert isinstance(leader, Claim)
    ledger.seats.reserve_unit(leader.job_id, leader.fence, LEADER, ["a", "b", "c"])
    ledger.seats.take(leader.job_id, "one", 60)
    ledger.seats.take(leader.job_id, "two", 60)
    backlog(ledger, "rival", 4)
    assert [taken(ledger) for _ in range(3)] == [f"rival_{n:04}" for n in range(3)]


def test_blocked_and_large_jobs_only_cost_a_look(ledger: Ledger) -> None:
    backlog(ledger, "acme", 250, scratch_bytes=1000)
    backlog(ledger, "rival", 3)
    limits = RunningLimits(None, {"rival": 1})
    assert taken(ledger, limits, 999) == "rival_0000"
    found = ledger.claim("w", 60, limits, 999)
    assert found.claim is Refusal.NO_ROOM
    assert found.too_large == tuple(f"acme_{number:04}" for number in range(10))
    assert taken(ledger, limits, 1000) == "acme_0000"


def test_what_says_that_it_lacks_room_is_not_named_again(ledger: Ledger) -> None:
    backlog(ledger, "acme", 12, scratch_bytes=1000)
    named = ledger.claim("w", 60, free_bytes=0).too_large
    for job_id in named:
        assert ledger.decline(job_id, ERROR, 0)
    assert ledger.claim("w", 60, free_bytes=0).too_large == ("acme_0010", "acme_0011")


def test_a_job_that_is_given_back_keeps_its_place(ledger: Ledger) -> None:
    backlog(ledger, "acme", 3)
    claim = ledger.claim("w", 60).claim
    assert isinstance(claim, Claim)
    assert ledger.release(claim.job_id, claim.fence)
    assert [taken(ledger) for _ in range(3)] == [f"acme_{n:04}" for n in range(3)]


def test_a_retry_by_the_user_goes_to_the_end(ledger: Ledger) -> None:
    backlog(ledger, "acme", 3)
    ledger.request_cancel("acme_0000")
    assert ledger.reopen("acme_0000", 1)
    assert [taken(ledger) for _ in range(3)] == ["acme_0001", "acme_0002", "acme_0000"]
