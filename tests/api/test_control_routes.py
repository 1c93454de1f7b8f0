from __future__ import annotations

from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.jobs.ends import commit
from api.jobs.journal import Outcome
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.services import Services
from tests.support.claims import claim_job
from tests.support.routes import submit


@pytest.fixture
def job(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    return submit(client, body)


def claim(services: Services, job: dict[str, Any]) -> Claim:
    claim = claim_job(services.ledger, job["id"], "w", 60)
    assert isinstance(claim, Claim)
    return claim


def test_cancel_a_waiting_job(client: TestClient, services: Services, job: dict[str, Any]) -> None:
    for _ in range(2):
        answer = client.post(job["links"]["cancel"])
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert "ETag" in answer.headers
    outcome = services.journal.read_outcome(job["id"])
    assert outcome is not None
    assert outcome.state == JobState.CANCELLED


def test_a_cancelled_job_stays_so_when_redis_is_lost(
    client: TestClient, job: dict[str, Any], flush: redis.Redis
) -> None:
    client.post(job["links"]["cancel"])
    flush.flushdb()
    assert client.get(job["links"]["self"]).json()["state"] == "cancelled"


def test_cancel_a_running_job(client: TestClient, services: Services, job: dict[str, Any]) -> None:
    claim(services, job)
    for _ in range(2):
        answer = client.post(job["links"]["cancel"])
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")


def test_too_late_to_cancel(client: TestClient, services: Services, job: dict[str, Any]) -> None:
    services.ledger.finish(job["id"], claim(services, job).fence, JobState.SUCCEEDED)
    answer = client.post(job["links"]["cancel"])
    assert (answer.status_code, answer.json()["code"]) == (409, "state_conflict")


def test_cancel_loses_to_an_outcome_that_is_already_committed(
    client: TestClient, services: Services, job: dict[str, Any]
) -> None:
    """As of a zombie that published before its lease was taken away."""
    outcome = Outcome(state=JobState.SUCCEEDED, fence=1, finished_at=5.0)
    services.journal.write_outcome(job["id"], outcome)
    assert client.post(job["links"]["cancel"]).status_code == 409
    assert client.get(job["links"]["self"]).json()["state"] == "succeeded"


def test_pause_and_resume(client: TestClient, services: Services, job: dict[str, Any]) -> None:
    here = job["links"]["self"]
    assert client.post(f"{here}/pause").status_code == 200
    answer = client.post(f"{here}/resume")
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    claim(services, job)
    answer = client.post(f"{here}/pause")
    assert (answer.status_code, answer.json()["state"]) == (202, "pausing")
    answer = client.post(f"{here}/resume")
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    client.post(job["links"]["cancel"])
    assert client.post(f"{here}/pause").status_code == 409
    assert client.post(f"{here}/resume").status_code == 409


def fail(services: Services, job: dict[str, Any]) -> None:
    outcome = Outcome(
        state=JobState.FAILED,
        error={"code": "invalid_text", "message": "too short"},
        run=claim(services, job).run,
        finished_at=5.0,
    )
    commit(services.journal, services.ledger, job["id"], outcome)


def test_retry(client: TestClient, services: Services, job: dict[str, Any]) -> None:
    answer = client.post(job["links"]["retry"])
    assert (answer.status_code, answer.json()["code"]) == (409, "state_conflict")
    fail(services, job)
    # Repeated, as by a client that did not hear the answer.
    for _ in range(2):
        answer = client.post(job["links"]["retry"])
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        assert (answer.json()["run"], answer.json()["error"]) == (2, None)
        assert answer.headers["ETag"] == client.get(job["links"]["self"]).headers["ETag"]
    taken = claim(services, job)
    assert client.post(job["links"]["retry"]).status_code == 202
    services.ledger.finish(job["id"], taken.fence, JobState.SUCCEEDED)
    assert client.post(job["links"]["retry"]).status_code == 409


def test_a_retried_job_stays_so_when_redis_is_lost(
    client: TestClient, services: Services, job: dict[str, Any], flush: redis.Redis
) -> None:
    fail(services, job)
    client.post(job["links"]["retry"])
    flush.flushdb()
    found = client.get(job["links"]["self"]).json()
    assert (found["state"], found["run"]) == ("queued", 2)


def test_delete(client: TestClient, services: Services, job: dict[str, Any]) -> None:
    here = job["links"]["self"]
    answer = client.delete(here)
    assert (answer.status_code, answer.json()["code"]) == (409, "state_conflict")
    client.post(job["links"]["cancel"])
    answer = client.delete(here)
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get(here).status_code == 404
    assert client.delete(here).status_code == 404
    assert client.post(job["links"]["retry"]).status_code == 404


def test_a_deleted_job_stays_so(
    client: TestClient, services: Services, body: dict[str, Any], flush: redis.Redis
) -> None:
    """Also when Redis is lost, and when its submission arrives once more."""
    key = {"Idempotency-Key": "once"}
    job = submit(client, body, **key)
    client.post(job["links"]["cancel"])
    client.delete(job["links"]["self"])
    flush.flushdb()
    assert client.get(job["links"]["self"]).status_code == 404
    answer = client.post("/v1/pruning-jobs", json=body, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert client.get("/v1/pruning-jobs").json()["data"] == []
