"""Quotas, rate limits and deadlines: in the ledger, and as the API answers them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.jobs.ends import commit_end
from api.jobs.journal import Journal
from api.jobs.ledger import RESERVATION_SECONDS, Ledger
from api.jobs.limits import RunningLimits, TenantLimits
from api.jobs.record import Claim, Refusal
from api.jobs.state import JobState
from api.services import Services
from api.settings import Settings
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.records import new_job
from tests.support.routes import JOBS, elsewhere


def test_of_racing_submissions_as_many_as_there_are_places_get_one(ledger: Ledger) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: ledger.reserve("acme", f"job_{n}", 5), range(32)))
    assert won.count(True) == 5
    assert ledger.reserve("rival", "job_x", 5)


def test_a_reservation_becomes_the_jobs_place(ledger: Ledger) -> None:
    for job_id in ("job_a", "job_b"):
        assert ledger.reserve("acme", job_id, 2)
        ledger.create(new_job(job_id))
        assert ledger.reserve("acme", job_id, 2)  # a replay needs no second place
    assert not ledger.reserve("acme", "job_c", 2)
    claim_job(ledger, "job_a", "w", 60)
    ledger.request_pause("job_b")
    assert not ledger.reserve("acme", "job_c", 2)
    ledger.request_cancel("job_b")
    assert ledger.reserve("acme", "job_c", 2)


def test_a_reservation_that_nobody_uses_lapses(ledger: Ledger) -> None:
    assert ledger.reserve("acme", "job_a", 1)
    assert not ledger.reserve("acme", "job_b", 1)
    advance(ledger, RESERVATION_SECONDS + 1)
    assert ledger.reserve("acme", "job_b", 1)


def test_no_more_of_a_tenants_jobs_run_than_may(ledger: Ledger) -> None:
    for job_id, priority in (("job_a", "low"), ("job_b", "low"), ("job_c", "high")):
        ledger.create(new_job(job_id, priority=priority))
    ledger.create(new_job("job_x", tenant="rival"))
    first = claim_job(ledger, "job_c", "w1", 60, 1)  # the more urgent one, although it came later
    assert isinstance(first, Claim)
    assert isinstance(claim_job(ledger, "job_x", "w2", 60, 1), Claim)
    assert claim_job(ledger, "", "w2", 60, 1) is Refusal.BLOCKED
    ledger.request_pause("job_c")
    assert claim_job(ledger, "", "w2", 60, 1) is Refusal.BLOCKED  # the worker is still at it
    ledger.release("job_c", first.fence)
    second = claim_job(ledger, "job_a", "w2", 60, 1)
    assert isinstance(second, Claim)
    assert claim_job(ledger, "", "w2", 60, 1) is Refusal.BLOCKED
    own = RunningLimits(1, {"acme": 2})
    taken = ledger.claim("w3", 60, own)
    assert taken.record is not None
    assert taken.record.id == "job_b"
    assert ledger.claim("w3", 60, own).claim is Refusal.NOTHING


def test_a_bucket_empties_and_fills(ledger: Ledger) -> None:
    per_second = 1 / 60
    waits = [ledger.take_token("acme", per_second, 3) for _ in range(4)]
    assert waits[:3] == [0.0, 0.0, 0.0]
    assert 0.0 < waits[3] <= 60
    assert ledger.take_token("rival", per_second, 3) == 0.0
    advance(ledger, waits[3] + 1)
    assert ledger.take_token("acme", per_second, 3) == 0.0
    assert ledger.take_token("acme", per_second, 3) > 0.0


def test_a_deadline_counts_from_the_first_start(ledger: Ledger) -> None:
    ledger.create(new_job(deadline_seconds=60))
    advance(ledger, 61)
    assert ledger.overdue(10) == []  # waiting for its first worker costs nothing
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    assert claim.seconds_left == pytest.approx(60, abs=1)
    ledger.release("job_a", claim.fence)
    again = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(again, Claim)
    assert again.seconds_left is not None
    assert claim.seconds_left is not None
    assert again.seconds_left < claim.seconds_left
    advance(ledger, 61)
    assert ledger.overdue(10) == []  # its worker sees to it


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PAUSED])
def test_a_deadline_passes_also_without_a_worker(
    ledger: Ledger, journal: Journal, state: JobState
) -> None:
    ledger.create(new_job(deadline_seconds=60))
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    if state is JobState.PAUSED:
        ledger.request_pause("job_a")
    ledger.release("job_a", claim.fence)
    advance(ledger, 61)
    assert ledger.overdue(10) == ["job_a"]
    assert ledger.overdue(10) == []
    record = ledger.get("job_a")
    assert record is not None
    assert record.state is JobState.FAILED
    assert record.error is not None
    assert record.error["code"] == "deadline_exceeded"
    assert commit_end(journal, ledger, record).state is JobState.FAILED
    # The next run has all of its time before it.
    ledger.reopen("job_a", 1)
    assert ledger.overdue(10) == []
    again = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(again, Claim)
    assert again.seconds_left == pytest.approx(60, abs=1)


@pytest.fixture
def limited(
    settings: Settings, keys: dict[str, str], flush: redis.Redis, request: pytest.FixtureRequest
) -> Iterator[TestClient]:
    """The app with limits for tenant acme, called by it."""
    limits = {"acme": TenantLimits.model_validate(request.param)}
    app = create_app(settings.model_copy(update={"tenant_limits": limits}))
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("limited", [{"open_jobs": 1}], indirect=True)
def test_a_quota_is_a_429_that_leaves_nothing(
    limited: TestClient, body: dict[str, Any], keys: dict[str, str]
) -> None:
    first = limited.post(JOBS, json=body, headers={"Idempotency-Key": "a"})
    assert first.status_code == 202
    answer = limited.post(JOBS, json=elsewhere(body))
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert int(answer.headers["Retry-After"]) > 0
    services: Services = limited.app.state.services  # type: ignore[attr-defined]
    assert len(services.journal.jobs()) == 1
    assert limited.post(JOBS, json=body, headers={"Idempotency-Key": "a"}).status_code == 202
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    assert limited.post(JOBS, json=elsewhere(body), headers=rival).status_code == 202
    here = first.json()["links"]["self"]
    limited.post(f"{here}/cancel")
    assert limited.post(JOBS, json=elsewhere(body)).status_code == 202
    answer = limited.post(f"{here}/retry")
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert limited.get(here).json()["state"] == "cancelled"


@pytest.mark.parametrize(
    "limited", [{"requests_per_second": 0.5, "request_burst": 3}], indirect=True
)
def test_a_rate_limit_is_a_429_for_one_tenant(limited: TestClient, keys: dict[str, str]) -> None:
    answers = [limited.get(JOBS) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[3].json()["code"] == "rate_limited"
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 2
    assert answers[3].headers["Content-Type"] == "application/problem+json"
    # Another key of the same tenant draws from the same bucket.
    reader = {"Authorization": f"Bearer {keys['acme-reader']}"}
    assert limited.get(JOBS, headers=reader).status_code == 429
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    assert limited.get(JOBS, headers=rival).status_code == 200
    assert limited.get("/healthz").status_code == 200
